"""Influence by likeness: the cosine of a pool row's vector with a target row's (`rds+`, `embed`).

influence[n, v] = <x_n, y_v>        both of unit length
"""

from __future__ import annotations

import numpy as np

from siftune.datastore.store import Datastore


def vector_influence(store: Datastore, features_V_D: np.ndarray) -> np.ndarray:
    """`influence_N_V`, fp32, a block of rows at a time; NaN for rows without a vector.

    Sums are fp64: in fp32 a row's last digit would depend on its place in its shard, and equal rows would not tie.
    """
    influence_N_V = np.empty((store.plan.n_rows, len(features_V_D)), np.float32)
    features_D_V = features_V_D.T.astype(np.float64)
    for shard in store.plan.shards:
        for start, features_n_D in store.blocks(shard):
            influence_N_V[start : start + len(features_n_D)] = features_n_D.astype(np.float64) @ features_D_V
    return influence_N_V
