"""Making what a datastore holds: features of the pool, features of target rows, influence. Shard by shard; what is done stays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siftune.chat.encoder import ChatEncoder
from siftune.datastore.asking import Question
from siftune.datastore.careful import Care, Told, fill_tokens, target_care
from siftune.datastore.making import OnFailure, make_shards
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import Pool, TokenRows
from siftune.datastore.quantise import quantised
from siftune.datastore.shards import shard_file, write_shard
from siftune.datastore.store import Datastore
from siftune.datastore.targets import (
    Target,
    features_file,
    influence_notes,
    missing_influence,
    target_features,
    write_numbers,
)
from siftune.gradients.features import FeatureBatch, FeatureExtractor
from siftune.records.errors import SiftuneError
from siftune.records.readers import TargetRow
from siftune.records.recipe import Direction, StoreDtype


def build_datastore(
    path: Path,
    pool: Pool,
    extractor: FeatureExtractor,
    *,
    direction: Direction,
    store_dtype: StoreDtype,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_wait: Callable[[str], None] = lambda what: None,
    failing: OnFailure | None = None,
    plan: ShardPlan | None = None,
) -> Datastore:
    """Make what is missing of a checkpoint's features, beside other processes if there are any.

    `plan` has the shards that are wanted, where it isn't all of the pool's.

    `on_rows` is told how many rows each step finished, those that others made among them; `on_wait` what is waited for.

    The manifest has been claimed before (`siftune.datastore.manifest.claim`).
    """

    def make(shard: Shard, care: Care) -> None:
        rows = pool.token_rows(shard)
        features = features_of(rows, extractor, direction, pool.plan.batch_tokens, on_rows, care)
        on_rows(len(shard) - len(rows.row_N))
        write_features(path, shard, rows, features, store_dtype, care)

    make_shards(path, pool, make, failing or OnFailure(), on_rows, on_wait, plan)
    return Datastore(path, pool.plan)


def write_features(
    path: Path,
    shard: Shard,
    rows: TokenRows,
    features: FeatureBatch,
    store_dtype: StoreDtype,
    care: Care | None = None,
) -> None:
    """Commit a shard's features, those of its scorable `rows`; the other rows are NaN. care: what became of failures"""
    care = care or Care()
    at_N = rows.row_N - shard.start
    tensors = {
        **quantised(_spread(features.features_B_D, at_N, len(shard)), store_dtype),
        "row": torch.arange(shard.start, shard.stop),
        "loss": _spread(features.loss_B, at_N, len(shard)),
        "grad_norm": _spread(features.grad_norm_B, at_N, len(shard)),
        "direction_norm": _spread(features.direction_norm_B, at_N, len(shard)),
        "projection_norm": _spread(features.projection_norm_B, at_N, len(shard)),
    }
    row_N = rows.row_N.tolist()
    reasons = {str(row_N[b]): care.reasons.get(row_N[b], reason) for b, reason in _reasons(features).items()}
    write_shard(path, shard, tensors, {"without_feature": reasons, **care.notes()})


def features_of(
    rows: TokenRows,
    extractor: FeatureExtractor,
    direction: Direction,
    batch_tokens: int,
    on_rows: Callable[[int], None] = lambda rows: None,
    care: Care | None = None,
) -> FeatureBatch:
    """Features of token rows in their order, made in batches of like lengths; NaN for those that `care` left out."""
    n, d = len(rows.row_N), extractor.projector.n_features
    whole = FeatureBatch(*(np.full(shape, np.nan, np.float32) for shape in ((n, d), n, n, n, n)))

    def make(ids_B_T: np.ndarray, trained_B_T: np.ndarray, _: np.ndarray) -> FeatureBatch:
        return extractor(ids_B_T, trained_B_T, direction)

    fill_tokens(care or Care(), whole, rows, make, batch_tokens, on_rows)
    return whole


def _spread(values: np.ndarray, at_N: np.ndarray, n_rows: int) -> Tensor:
    """Values at their places among `n_rows`, NaN elsewhere."""
    spread = np.full((n_rows, *values.shape[1:]), np.nan, np.float32)
    spread[at_N] = values
    return torch.from_numpy(spread)


def _reasons(features: FeatureBatch) -> dict[int, str]:
    """Why rows of a batch have no feature."""
    reasons: dict[int, str] = {}
    for b in np.flatnonzero(np.isnan(features.features_B_D[:, 0])).tolist():
        if not np.isfinite(features.loss_B[b]):
            reasons[b] = "the loss is not finite"
        elif not np.isfinite(features.grad_norm_B[b]):
            reasons[b] = "the gradient is not finite"
        elif features.projection_norm_B[b] == 0:
            reasons[b] = "the direction is zero"
        else:
            reasons[b] = "the direction is not finite"
    return reasons


def encode_target(rows: list[TargetRow], encoder: ChatEncoder) -> TokenRows:
    """Tokens of target rows. A row that can't be used is an error: a handful of rows must all count."""
    encoded = []
    for row in rows:
        tokens = encoder.encode(row.example)
        if isinstance(tokens, str):
            raise SiftuneError(
                f"this target row can't be used: {tokens}",
                where=row.example.where,
                todo="Correct or remove it",
            )
        encoded.append(tokens)
    return TokenRows(np.arange(len(rows)), [e.token_ids for e in encoded], [e.trained for e in encoded])


def build_target_features(
    target: Target,
    tokens: TokenRows,
    checkpoint: int,
    store: Datastore,
    extractor: FeatureExtractor,
    batch_tokens: int,
    told: Told = lambda event, **details: None,
) -> None:
    """Make a target's features under a checkpoint (direction `sgd`: the raw gradient), for the store of that checkpoint."""
    features = features_of(tokens, extractor, "sgd", batch_tokens, care=target_care(target, told))
    for v in np.flatnonzero(np.isnan(features.features_B_D[:, 0])).tolist():
        raise SiftuneError(
            f"row {v + 1} of the target {target.name!r} has no gradient at checkpoint {checkpoint} (loss {features.loss_B[v]})",
            where=target.source,
            todo="Remove that row, or check the model",
        )
    tensors = {
        "features": features.features_B_D,
        "loss": features.loss_B,
        "grad_norm": features.grad_norm_B,
        "direction_norm": features.direction_norm_B,
        "projection_norm": features.projection_norm_B,
    }
    write_numbers(target, features_file(target, checkpoint), tensors, store.digest)


def build_influence(target: Target, checkpoint: int, store: Datastore) -> None:
    """Make what is missing of the influence of the pool on a target under one checkpoint, a block of rows at a time.

    Shards are committed beside the computing, several at once: waiting for the disk would take longer than the products.
    """
    folder, notes = target.path / "influence" / str(checkpoint), influence_notes(target, store)
    missing = missing_influence(target, checkpoint, store)
    question = Question(torch.from_numpy(target_features(target, checkpoint)))
    with ThreadPoolExecutor(_WRITERS) as writers:
        commits = deque[Future[None]]()
        for shard in missing:
            # One that is there is of an older store
            shard_file(folder, shard).with_suffix(".json").unlink(missing_ok=True)
            tensors = {"influence": question.influence(store.tensors(shard))}
            commits.append(writers.submit(write_shard, folder, shard, tensors, notes))
            if len(commits) > 2 * _WRITERS:
                commits.popleft().result()
        for commit in commits:
            commit.result()


_WRITERS = 8
"""Shards of influence being committed at a time; as many again may wait for that."""
