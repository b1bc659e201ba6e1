"""`RUN/datastore/METHOD/CKPT/`: the features of a pool under one checkpoint, in shards of the plan.

A shard's tensors have one row for every pool row of its range, in pool order; NaN where the row has no feature:

    features         [n, D] in the store's dtype, unit length      row             [n] int64
    scale            [n] fp32, int8 alone: times `features`
    loss             [n] fp32, mean over trained tokens            grad_norm       [n] fp32, of the gradient
    direction_norm   [n] fp32, before projection                   projection_norm [n] fp32, before normalisation
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from siftune.datastore.manifest import check_no_shards, read_manifest
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.quantise import restored, restored_blocks
from siftune.datastore.shards import read_numbers, read_shard, shard_notes
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of, read_sealed


def checkpoint_weight(checkpoint: Path) -> float:
    """The learning-rate weight w of a checkpoint folder of the run. SiftuneError where it says none."""
    file = checkpoint / "checkpoint.json"
    weight = read_sealed(file, "weight")["weight"]
    if not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise SiftuneError(
            f"the weight {str(weight)[:40]!r} is none",
            where=str(file),
            todo="Start a new run with another --out",
        )
    return float(weight)


def store_digest(path: Path) -> str | None:
    """As `Datastore.digest`, of the store at `path`; None where there is none yet."""
    manifest = path / "manifest.json"
    return _digest(read_manifest(manifest)) if manifest.exists() else None


def _digest(manifest: dict[str, Any]) -> str:
    return digest_of(manifest)[:32]


class Datastore:
    """Opens the features of one checkpoint for reading. NumPy goes out."""

    def __init__(self, path: Path, plan: ShardPlan):
        self.path, self.plan = path, plan
        if not (path / "manifest.json").exists():
            check_no_shards(path)
            raise SiftuneError(
                "holds no datastore", where=str(path), todo="Run 'siftune run' on to the datastore first"
            )
        self.manifest: dict[str, Any] = read_manifest(path / "manifest.json")

    @property
    def digest(self) -> str:
        """Of the manifest: what was derived from this store is of no other one in its place."""
        return _digest(self.manifest)

    def missing(self) -> list[Shard]:
        """Shards that are not done."""
        return [shard for shard in self.plan.shards if shard_notes(self.path, shard) is None]

    def tensors(self, shard: Shard) -> dict[str, Tensor]:
        """A shard's tensors as stored, its bytes checked."""
        return read_shard(self.path, shard)

    def features(self, shard: Shard) -> np.ndarray:
        """A shard's features `features_n_D` in fp32, whatever the store's dtype; NaN rows have none."""
        return restored(self.tensors(shard)).numpy()

    def blocks(self, shard: Shard) -> Iterator[tuple[int, np.ndarray]]:
        """As `features`, some hundred rows at a time: (pool row of the first, `features_n_D`). Memory holds no more than a block."""
        for start, features_n_D in restored_blocks(self.tensors(shard)):
            yield shard.start + start, features_n_D.numpy()

    def numbers(self, name: str) -> np.ndarray:
        """One number of every pool row, fp32: `loss`, `grad_norm`, `direction_norm` or `projection_norm`."""
        return np.concatenate([read_numbers(self.path, shard, name) for shard in self.plan.shards])

    def without_feature(self) -> Iterator[tuple[int, str]]:
        """(row, reason) of every row that could be read but got no feature."""
        for shard in self.plan.shards:
            for row, reason in (shard_notes(self.path, shard) or {}).get("without_feature", {}).items():
                yield int(row), reason
