"""Length: the longest answers first (Zhao et al., "Long Is More for Alignment", arXiv 2402.04833). Hard to beat for its price."""

from __future__ import annotations

import numpy as np


def length_scores(n_trained_N: np.ndarray) -> np.ndarray:
    """`scores_N`, fp32: the number of trained tokens; NaN for a row that has none."""
    return np.where(n_trained_N > 0, n_trained_N, np.nan).astype(np.float32)
