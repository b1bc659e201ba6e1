"""Section 2: how the pool scores, where the chosen rows lie, whether checkpoints agree, and how many rows tie at the cut."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

BINS = 48


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Rank correlation, ties at their mean rank; None where one side never varies."""
    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    return float(np.corrcoef(rankdata(x_N), rankdata(y_N))[0, 1])


def score_section(
    score_N: np.ndarray,
    chosen_N: np.ndarray,
    by_checkpoint: dict[int, np.ndarray],
    *,
    by_score: bool,
    may_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures of the scored rows.

    score_N:       of the scored rows
    by_checkpoint: score of the same rows under each checkpoint alone
    by_score:      are the best by score chosen (a cut), or do rows take turns?
    may_N:         rows that could be chosen, None: all; exact copies of another can't
    """
    left_N = ~chosen_N if may_N is None else ~chosen_N & may_N
    low, high = float(score_N.min()), float(score_N.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    cut = float(score_N[chosen_N].min())
    agreement = [
        {
            "first": a,
            "second": b,
            "spearman": None if rho is None else round(rho, 3),
        }
        for a, b in combinations(by_checkpoint, 2)
        for rho in [spearman(by_checkpoint[a], by_checkpoint[b])]
    ]
    ties = int((score_N == cut).sum())
    tied_out = int(((score_N == cut) & left_N).sum())
    better_out = int(((score_N > cut) & left_N).sum())
    lower = int((score_N[chosen_N] < np.median(score_N)).sum())
    return {
        "edges": [round(float(edge), 6) for edge in edges],
        "pool": np.histogram(score_N, edges)[0].tolist(),
        "chosen": np.histogram(score_N[chosen_N], edges)[0].tolist(),
        "cut": cut,
        "by_score": by_score,
        "ties_at_cut": ties,
        "tied_but_left_out": tied_out,
        "higher_but_left_out": better_out,
        "copies": 0 if may_N is None else int((~may_N).sum()),
        "chosen_in_lower_half": lower,
        "agreement": agreement,
        "finding": _finding(
            score_N, chosen_N, cut, tied_out, better_out, agreement, by_score=by_score, lower=lower
        ),
    }


def _finding(
    score_N: np.ndarray,
    chosen_N: np.ndarray,
    cut: float,
    tied_out: int,
    better_out: int,
    agreement: list[dict[str, Any]],
    *,
    by_score: bool,
    lower: int,
) -> str:
    deviation = float(score_N.std()) or 1.0
    apart = (float(score_N[chosen_N].mean()) - float(score_N.mean())) / deviation
    parts = [f"Chosen rows score {apart:.1f} standard deviations above the pool's mean on average"]
    if by_score:
        parts.append(
            f"the cut is at {cut:.4g}"
            + (f", where {tied_out:,} rows of the same score were left out" if tied_out else "")
        )
    else:
        parts.append(
            f"the lowest score chosen is {cut:.4g}; rows were not taken by score alone, so {better_out:,} rows above it were left out"
        )
        if lower:
            parts.append(
                f"{lower:,} of the chosen lie in the pool's lower half: each is among the best for a single target row"
            )
    values = [pair["spearman"] for pair in agreement if pair["spearman"] is not None]
    if values:
        parts.append(
            f"checkpoints rank the pool alike to {min(values):.2f}"
            + (f" to {max(values):.2f}" if len(values) > 1 else "")
            + " (Spearman)"
        )
    return "; ".join(parts) + "."
