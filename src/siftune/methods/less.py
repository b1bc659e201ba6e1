"""LESS: how much a step on a pool row would lower the loss of a target row (arXiv 2402.04333, equation 3 and section 4).

    influence[n, v] = Σ_i w_i <Φ_i(n), φ_i(v)>

over checkpoints i with weights w_i (mean learning rate, normalised to sum 1), Φ_i(n) the pool row's feature and φ_i(v) that of the
target row's plain gradient, both of unit length.

`centre` asks a sharper question: Adam's history is the same vector in every row's direction and says nothing about the row. With
μ_i the mean of the scored rows' features, Φ is replaced by (Φ-μ)/|Φ-μ|; since <Φ-μ, φ> = <Φ, φ> - <μ, φ> and
|Φ-μ|² = |Φ|² - 2<Φ, μ> + |μ|², one pass over the datastore serves every target ever after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, read_influence, target_features
from siftune.records.files import written_whole


class WeightedStore(NamedTuple):
    """A checkpoint's number, its weight w_i and its features."""

    checkpoint: int
    weight: float
    store: Datastore


def less_influence(target: Target, stores: Sequence[WeightedStore], *, centre: bool) -> np.ndarray:
    """`influence_N_V` (fp32) over all checkpoints; NaN rows lack a feature under some checkpoint."""
    total_N_V: np.ndarray | None = None
    for checkpoint, weight, store in stores:
        influence_N_V = read_influence(target, checkpoint, store)
        if centre:
            influence_N_V = _centred(influence_N_V, target_features(target, checkpoint), centre_of(store))
        weighted_N_V = np.float32(weight) * influence_N_V
        total_N_V = weighted_N_V if total_N_V is None else total_N_V + weighted_N_V
    if total_N_V is None:
        raise ValueError("less needs at least one checkpoint")
    return total_N_V


class Centre(NamedTuple):
    """μ and what is needed to remove it: `mean_D`, `<Φ, μ>` and `|Φ|²` of every pool row (NaN where no feature)."""

    mean_D: np.ndarray
    dot_N: np.ndarray
    square_N: np.ndarray


def centre_of(store: Datastore) -> Centre:
    """The centre of a checkpoint's features, from two passes over the store, kept beside it until the store grows."""
    file = store.path / "centre.npz"
    shards = np.array([shard.digest for shard in store.plan.shards])
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            if np.array_equal(kept["shards"], shards):
                return Centre(kept["mean_D"], kept["dot_N"], kept["square_N"])
    total_D, count = np.zeros(0), 0
    for shard in store.plan.shards:
        for _, features_n_D in store.blocks(shard):
            sound_n_D = features_n_D[~np.isnan(features_n_D[:, 0])].astype(np.float64)
            total_D = sound_n_D.sum(axis=0) + (total_D if total_D.size else 0)
            count += len(sound_n_D)
    mean_D = (total_D / max(count, 1)).astype(np.float32)
    dot, square = [], []
    for shard in store.plan.shards:
        for _, features_n_D in store.blocks(shard):
            dot.append(features_n_D @ mean_D)
            square.append(np.einsum("nd,nd->n", features_n_D, features_n_D))
    centre = Centre(mean_D, np.concatenate(dot), np.concatenate(square))
    with written_whole(file) as aside, aside.open("wb") as out:
        np.savez(out, shards=shards, **centre._asdict())
    return centre


def _centred(influence_N_V: np.ndarray, features_V_D: np.ndarray, centre: Centre) -> np.ndarray:
    """Influence of centred, renormalised rows; a row that is the mean itself points nowhere: influence 0."""
    mean_square = np.dot(centre.mean_D.astype(np.float64), centre.mean_D)
    square_N = centre.square_N.astype(np.float64) - 2 * centre.dot_N + mean_square
    moved_N_V = influence_N_V - (features_V_D @ centre.mean_D)[None, :]
    at_mean_N = square_N < 1e-10
    length_N = np.sqrt(np.where(at_mean_N, 1.0, square_N))
    centred_N_V = moved_N_V / length_N[:, None]
    centred_N_V[at_mean_N] = 0
    return centred_N_V.astype(np.float32)
