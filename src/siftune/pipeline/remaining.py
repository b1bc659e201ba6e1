"""What is left to do in a run, counted exactly: batches, rows and padded tokens for the model, shards to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siftune.chat.batches import token_batches
from siftune.datastore.index import read_index, usable_rows
from siftune.datastore.plan import Shard
from siftune.datastore.pool import TokenRows
from siftune.datastore.shards import shard_notes
from siftune.model.adopt import checkpoint_folders
from siftune.model.checkpoint import list_checkpoints
from siftune.model.warmup import default_batch, micro_batch_of, warmup_rows
from siftune.pipeline.estimate import NOTHING, Load, together
from siftune.pipeline.scoring import GRADED, VECTORED
from siftune.pipeline.session import Session
from siftune.pipeline.stages import STAGES, Stage
from siftune.pipeline.training import PROBE_ROWS


@dataclass(frozen=True)
class PoolFacts:
    """A pool that was read: rows, tokens and trained tokens of the usable ones, their row numbers and lengths."""

    n_rows: int
    n_tokens: int
    n_trained: int
    row_N: np.ndarray
    length_N: np.ndarray


@dataclass(frozen=True)
class Remaining:
    """What is left. Loads hold the target's rows too; shards are those that will be written.

    checkpoints: of the whole run, 0 where the method needs none
    stores:      checkpoints under which features are missing
    influence:   (shard, target rows) for every checkpoint and target
    micro_batch: rows of one pass of the warm-up
    """

    pool: PoolFacts
    checkpoints: int
    stores: int
    warmup: Load
    features: Load
    vectors: Load
    feature_shards: list[Shard]
    vector_shards: list[Shard]
    influence: list[tuple[Shard, int]]
    micro_batch: int

    @property
    def needs_model(self) -> bool:
        """Has a model to pass over anything?"""
        return bool(self.warmup.rows or self.features.rows or self.vectors.rows)


def remaining(session: Session, targets: Mapping[str, TokenRows], until: Stage) -> Remaining:
    """What is left up to a stage, for the targets given (their tokens by name)."""
    recipe, shards, budget = session.recipe, session.pool.plan.shards, session.pool.plan.batch_tokens
    index = read_index(session.path)
    usable_N, length_N = usable_rows(index), index["n_tokens"].to_numpy()
    of_shard = [_batched(length_N[s.start : s.stop][usable_N[s.start : s.stop]], budget) for s in shards]
    of_targets = together(
        _batched(np.array([len(ids) for ids in tokens.token_ids]), budget) for tokens in targets.values()
    )
    row_N, reached = np.flatnonzero(usable_N), STAGES.index(until)
    graded = recipe.method in GRADED and reached >= STAGES.index("warmup")
    n = n_checkpoints(session) if graded else 0
    warmup, micro_batch = NOTHING, 1
    if graded and not list_checkpoints(session.path):
        warmup, micro_batch = _warmup(session, row_N, length_N)
    stores, feature_shards, features = 0, list[Shard](), list[Load]()
    for number in range(1, n + 1) if reached >= STAGES.index("datastore") else ():
        left = _missing(session.store_path(number), shards)
        files = [session.path / "targets" / name / "features" / f"{number}.safetensors" for name in targets]
        if left or not all(file.exists() for file in files):
            stores += 1
            feature_shards += left
            features += [of_targets, *(of_shard[shard.number] for shard in left)]
    vectored = recipe.method in VECTORED and reached >= STAGES.index("datastore")
    vector_shards = _missing(session.vectors_path(), shards) if vectored else []
    vectors = [of_targets] * bool(vector_shards) + [of_shard[shard.number] for shard in vector_shards]
    influence = [
        (shard, len(tokens.row_N))
        for number in (range(1, n + 1) if reached >= STAGES.index("influence") else ())
        for name, tokens in targets.items()
        for shard in _missing(session.path / "targets" / name / "influence" / str(number), shards)
    ]
    n_tokens, n_trained = (int(index[name].to_numpy()[row_N].sum()) for name in ("n_tokens", "n_trained"))
    return Remaining(
        pool=PoolFacts(index.num_rows, n_tokens, n_trained, row_N, length_N[row_N]),
        checkpoints=n,
        stores=stores,
        warmup=warmup,
        features=together(features),
        vectors=together(vectors),
        feature_shards=feature_shards,
        vector_shards=vector_shards,
        influence=influence,
        micro_batch=micro_batch,
    )


def n_checkpoints(session: Session) -> int:
    """Checkpoints that the run has or will have."""
    if made := list_checkpoints(session.path):
        return len(made)
    recipe = session.recipe
    return len(checkpoint_folders(Path(recipe.adopt))) if recipe.adopt else recipe.epochs


def _warmup(session: Session, row_N: np.ndarray, length_N: np.ndarray) -> tuple[Load, int]:
    """The load of all epochs, and the rows of a pass. Rows come in random order: a batch is padded as a random one.

    A warm-up that was cut off counts as a new one, although it goes on from its last whole epoch.
    """
    recipe = session.recipe
    if recipe.adopt:  # no training: the order of each checkpoint's moments is probed, row by row
        rows = np.random.default_rng(recipe.seed).permutation(row_N)[:PROBE_ROWS]
        return Load.of([[int(length_N[row])] for row in rows]).times(n_checkpoints(session)), 1
    rows = session.warmup_rows() or warmup_rows(row_N, fraction=recipe.warmup_fraction, seed=recipe.seed)
    lengths = length_N[np.asarray(rows)]
    most = max(1, session.pool.plan.batch_tokens // int(lengths.max()))
    micro = micro_batch_of(recipe.batch or default_batch(len(lengths)), most)
    draw = np.random.default_rng(0)
    orders = [draw.permutation(lengths).tolist() for _ in range(recipe.epochs)]
    batches = [order[start : start + micro] for order in orders for start in range(0, len(order), micro)]
    return Load.of(batches), micro


def _batched(lengths: np.ndarray, budget: int) -> Load:
    return Load.of([lengths[batch].tolist() for batch in token_batches(lengths.tolist(), budget)])


def _missing(folder: Path, shards: tuple[Shard, ...]) -> list[Shard]:
    return [shard for shard in shards if shard_notes(folder, shard) is None]
