"""Features of a pool in several directions from one pass over it: forward and backward are paid once.

    python experiments/directions.py RUN CHECKPOINT sgd adam adam-precond

RUN holds a pool, targets and checkpoints (`siftune run … --until warmup`). Each direction gets a run of its own beside it, RUN-DIRECTION,
with the features, and the influence on every target, that `siftune run --direction DIRECTION` would make there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from siftune.chat.batches import pad_batch, token_batches
from siftune.datastore.features_writer import (
    build_influence,
    build_target_features,
    encode_target,
    write_features,
)
from siftune.datastore.plan import Shard
from siftune.datastore.shards import shard_notes
from siftune.datastore.targets import features_file, has_numbers, kept_rows, write_numbers
from siftune.gradients.capture import captured
from siftune.gradients.features import BatchSums, FeatureBatch, FeatureExtractor
from siftune.gradients.loss import losses
from siftune.model.checkpoint import list_checkpoints
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_made_with, read_run_recipe, write_run_recipe
from siftune.pipeline.session import Session
from siftune.pipeline.training import _claimed_projector, feature_extractor


def sessions(run: Path, kinds: list[str]) -> dict[str, Session]:
    """A run for each direction, made from RUN where it isn't there."""
    found = {}
    for kind in kinds:
        path = run.with_name(f"{run.name}-{kind}")
        recipe = read_run_recipe(run).with_settings({"direction": kind})
        if not path.exists():
            shutil.copytree(run, path)
            write_run_recipe(path, recipe, read_made_with(run))
        found[kind] = Session(path, recipe, Reporter(), recipe)
    return found


def features(
    extractor: FeatureExtractor, ids_B_T: np.ndarray, trained_B_T: np.ndarray, kinds: list[str]
) -> dict[str, FeatureBatch]:
    """What `FeatureExtractor` gives, for every direction, from one backward pass."""
    lift_B = torch.ones(len(ids_B_T))
    sums = {kind: BatchSums(lift_B, extractor, kind) for kind in kinds}  # pyright: ignore[reportArgumentType]

    def take(name: str, gradient_B_O_I: torch.Tensor) -> None:
        for batch in sums.values():
            batch.take(name, gradient_B_O_I)

    with captured(extractor.layers, (ids_B_T.shape[0], ids_B_T.shape[1]), take):
        loss_B = losses(extractor.model, torch.from_numpy(ids_B_T).long(), torch.from_numpy(trained_B_T))
        loss_B.sum().backward()
    return {kind: batch.result(loss_B.detach()) for kind, batch in sums.items()}


def build_shard(by_kind: dict[str, Session], extractor: FeatureExtractor, number: int, shard: Shard) -> None:
    """Make one shard's features in every direction."""
    pool = next(iter(by_kind.values())).pool
    rows = pool.token_rows(shard)
    n, d = len(rows.row_N), extractor.projector.n_features
    whole = {
        kind: FeatureBatch(np.empty((n, d), np.float32), *(np.empty(n, np.float32) for _ in range(4)))
        for kind in by_kind
    }
    for batch in token_batches([len(ids) for ids in rows.token_ids], pool.plan.batch_tokens):
        ids_B_T, trained_B_T, _ = pad_batch([(rows.token_ids[i], rows.trained[i]) for i in batch], pad_id=0)
        for kind, found in features(extractor, ids_B_T, trained_B_T, list(by_kind)).items():
            for all_rows, of_batch in zip(whole[kind], found, strict=True):
                all_rows[batch] = of_batch
    for kind, session in by_kind.items():
        write_features(session.store_path(number), shard, rows, whole[kind], session.recipe.store_dtype)


def main(run: Path, number: int, kinds: list[str]) -> None:
    """Make what is missing at one checkpoint."""
    by_kind = sessions(run, kinds)
    first = by_kind[kinds[0]]
    checkpoint = next(c for c in list_checkpoints(run) if c.number == number)
    with feature_extractor(first, checkpoint) as extractor:
        assert first.base is not None
        for session in by_kind.values():
            session.base, session.base_digest = first.base, first.base_digest
            _claimed_projector(session, checkpoint, first.base, extractor.model)
        for name in first.recipe.target:
            target = first.target(name)
            if not has_numbers(target, features_file(target, number), first.store_path(number)):
                tokens = encode_target(kept_rows(target), first.encoder)
                store = first.store(number)
                build_target_features(target, tokens, number, store, extractor, first.pool.plan.batch_tokens)
            for session in by_kind.values():  # targets are raw gradients whatever the direction
                file, store = features_file(session.target(name), number), session.store(number)
                if not has_numbers(target, file, store.path):
                    write_numbers(target, file, load_file(features_file(target, number)), store.digest)
        for shard in first.pool.plan.shards:
            if any(shard_notes(s.store_path(number), shard) is None for s in by_kind.values()):
                build_shard(by_kind, extractor, number, shard)
                print(f"checkpoint {number}: {shard.stop:,} of {first.pool.plan.n_rows:,} rows", flush=True)
    for session in by_kind.values():
        for name in session.recipe.target:
            build_influence(session.target(name), number, session.store(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
