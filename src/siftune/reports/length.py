"""Section 4: does the score follow length? Cosine influence likes short answers (arXiv 2402.04333, appendix on length), likeness long ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from siftune.reports.scores import spearman

FLAGGED = 0.3
BINS = 8


def length_section(
    score_N: np.ndarray, n_trained_N: np.ndarray, chosen_N: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Score against trained tokens of the scored rows: Spearman with a 95 % interval, bins of equally many rows, medians."""
    rho, low, high = _spearman(score_N, n_trained_N)
    random_N = np.random.default_rng(seed).permutation(len(score_N))[: int(chosen_N.sum())]
    medians = {
        "chosen": float(np.median(n_trained_N[chosen_N])),
        "pool": float(np.median(n_trained_N)),
        "random": float(np.median(n_trained_N[random_N])),
    }
    flagged = rho is not None and abs(rho) > FLAGGED
    return {
        "spearman": rho,
        "low": low,
        "high": high,
        "flagged": flagged,
        "medians": medians,
        "bins": _bins(score_N, n_trained_N),
        "finding": _finding(rho, low, high, medians),
    }


def _spearman(
    score_N: np.ndarray, n_trained_N: np.ndarray
) -> tuple[float | None, float | None, float | None]:
    """Rho and its interval by Fisher's z with Bonett and Wright's (2000) error, sqrt((1 + rho²/2) / (N - 3))."""
    rho = spearman(score_N, n_trained_N) if len(score_N) > 4 else None
    if rho is None:
        return None, None, None
    assert rho is not None
    z, half = (
        np.arctanh(np.clip(rho, -0.999999, 0.999999)),
        1.96 * np.sqrt((1 + rho**2 / 2) / (len(score_N) - 3)),
    )
    return round(rho, 3), round(float(np.tanh(z - half)), 3), round(float(np.tanh(z + half)), 3)


def _bins(score_N: np.ndarray, n_trained_N: np.ndarray) -> list[dict[str, Any]]:
    """Rows by length in up to eight bins of about equally many: their range, and the score's mean and middle 80 %."""
    edges = np.unique(np.quantile(n_trained_N, np.linspace(0, 1, BINS + 1), method="nearest"))
    found = []
    for place, (first, last) in enumerate(pairwise(edges)):
        inside = (n_trained_N >= first) & (
            (n_trained_N < last) | ((place == len(edges) - 2) & (n_trained_N == last))
        )
        if inside.any():
            low, high = np.quantile(score_N[inside], [0.1, 0.9])
            found.append(
                {
                    "from": int(n_trained_N[inside].min()),
                    "to": int(n_trained_N[inside].max()),
                    "rows": int(inside.sum()),
                    "mean": float(score_N[inside].mean()),
                    "low": float(low),
                    "high": float(high),
                }
            )
    return found


def _finding(rho: float | None, low: float | None, high: float | None, medians: dict[str, float]) -> str:
    middle = f"Median trained tokens: chosen {medians['chosen']:.0f}, pool {medians['pool']:.0f}, as many random rows {medians['random']:.0f}."
    if rho is None:
        return f"Scores or lengths don't vary. {middle}"
    if abs(rho) <= FLAGGED:
        return f"The score hardly follows length (Spearman {rho:.2f} [{low:.2f}, {high:.2f}]). {middle}"
    which = "long" if rho > 0 else "short"
    return f"The score follows length: it likes {which} answers (Spearman {rho:.2f} [{low:.2f}, {high:.2f}]). {middle}"
