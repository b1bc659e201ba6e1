"""Three views of a row added: what a step on it would do (`less`), whether it is about the same (`rds+`), whether it has the same words (`bm25`).

Gradients of the answer alone know little of what was asked, hidden states little of what is learnt, words
nothing of either but what they name; where they agree is what serves. Each is brought to one scale over the
pool, target row by target row, so that no view's spread decides:

    influence[n, v] = z(less)[n, v] + z(rds+)[n, v] + z(bm25)[n, v]        z(x)[n, v] = (x[n, v] - mean_n x[n, v]) / std_n x[n, v]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-6
"""Of fp32 numbers of one size: what differs by less is the same."""


def blended_influence(views: Sequence[np.ndarray]) -> np.ndarray:
    """`influence_N_V`, fp32, in standard deviations; NaN rows lack one of the views, and count in no view's mean."""
    whole_N = ~np.any([np.isnan(view_N_V[:, 0]) for view_N_V in views], axis=0)
    total_N_V = np.full(views[0].shape, np.nan, np.float32)
    total_N_V[whole_N] = sum(standardised(view_N_V[whole_N]) for view_N_V in views)
    return total_N_V


def standardised(influence_N_V: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 in every column; a column that varies by no more than rounding says nothing and becomes 0.

    Column by column in fp64, so that memory is that of the result.
    """
    result_N_V = np.zeros(influence_N_V.shape, np.float32)
    for v, column_N in enumerate(influence_N_V.T):
        centred_N = column_N.astype(np.float64) - column_N.mean(dtype=np.float64)
        std = centred_N.std()
        if std > ROUNDING * np.abs(column_N).max():
            result_N_V[:, v] = centred_N / std
    return result_N_V
