"""Random: what every method has to beat. A score drawn uniformly per pool row, from the seed alone."""

from __future__ import annotations

import numpy as np


def random_scores(n_rows: int, seed: int) -> np.ndarray:
    """`scores_N` in [0, 1), fp32. The first rows keep their scores when the pool grows."""
    return np.random.Generator(np.random.Philox(key=seed)).random(n_rows, dtype=np.float32)
