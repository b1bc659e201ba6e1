"""What can be said of measurements on the same test rows, repeated over training seeds: `values_S_R`, S seeds by R rows.

Two things vary: which rows the test has, and how a training turns out. The interval is the 95 % percentile interval of 10,000 draws of

    m + w (mean over R rows drawn with replacement - m)  +  sqrt(v) T

of the rows' means over seeds, m their mean (bootstrap: Efron 1979); in a difference the rows drawn are the same for both arms, as they are measured
on the same rows. R rows drawn from R vary by (R-1)/R of what they should and know nothing of Student's t: w = sqrt(R/(R-1)) t(R-1) / t(∞) makes
up for both, t(f) Student's 97.5 % quantile (as Hesterberg 2015 expands percentiles). T is Student's at f degrees of freedom; v, the variance of a mean of S seeds, is what
seeds' means vary by beyond the noise that rows have by themselves (two-way analysis of variance): v = max(0, s^2 - e / R) / S, s^2 the
variance between the seeds' means, e the mean square of what neither row nor seed explains; f = S - 1. In a difference the variances of both arms
add, as their trainings share nothing, and f is Welch's (1947). An arm of one seed can't say how its training varies: it is taken to vary as
another arm does, `like_S_R`; without such the interval is that over rows alone.

The numbers depend on the seed of the draws, and by as little as that on the order of rows (10,000 draws: the ends move by about 2 %
of the width); never on how many draws are made at once but by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from siftune.records.errors import SiftuneError

DRAWS = 10_000
_TAILS = (2.5, 97.5)
_NUMBERS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A mean and its 95 % interval; `low` and `high` are None for a single test row."""

    mean: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Mean of a - b and its 95 % interval (None for a single test row); significant where that leaves out 0."""

    mean: float
    low: float | None
    high: float | None
    significant: bool


class Correlation(NamedTuple):
    """Spearman's rho and its 95 % interval; `low` and `high` are None where every draw has the same rho, as a perfect order has."""

    rho: float
    low: float | None
    high: float | None


def interval_of(values_S_R: np.ndarray, seed: int, like_S_R: np.ndarray | None = None) -> Interval:
    """Mean over seeds and rows, with its interval. Raises SiftuneError for a value that is not finite.

    like_S_R: an arm of several seeds; what is of one seed is taken to vary as that does
    """
    values_S_R = _checked(values_S_R)
    mean = float(values_S_R.mean())
    if values_S_R.shape[1] == 1:
        return Interval(mean, None, None)
    return Interval(mean, *_ends(values_S_R.mean(axis=0), *_of_seeds([values_S_R], like_S_R), seed))


def difference_of(
    a_S_R: np.ndarray, b_S_R: np.ndarray, seed: int, like_S_R: np.ndarray | None = None
) -> Difference:
    """Mean of a minus mean of b, paired over rows; the arms may have different numbers of seeds.

    like_S_R: an arm of several seeds, which may be a or b; an arm of one seed is taken to vary as that does
    The same measurements twice differ by 0 ± 0, however many seeds. What has no seeds at all, as an untrained model, is given twice: two
    alike vary by nothing. Raises SiftuneError for a value that is not finite.
    """
    a_S_R, b_S_R = _checked(a_S_R), _checked(b_S_R)
    if a_S_R.shape[1] != b_S_R.shape[1]:
        raise ValueError(f"{a_S_R.shape[1]} and {b_S_R.shape[1]} rows can't be paired")
    mean = float(a_S_R.mean() - b_S_R.mean())
    if a_S_R.shape[1] == 1:
        return Difference(mean, None, None, significant=False)
    if np.array_equal(a_S_R, b_S_R):
        return Difference(0.0, 0.0, 0.0, significant=False)
    of_seeds = _of_seeds([a_S_R, b_S_R], like_S_R)
    low, high = _ends(a_S_R.mean(axis=0) - b_S_R.mean(axis=0), *of_seeds, seed)
    return Difference(mean, low, high, significant=low > 0 or high < 0)


def spread_of(values_S_R: np.ndarray) -> float | None:
    """Standard deviation over seeds of the mean over rows (n - 1); None for a single seed."""
    values_S_R = _checked(values_S_R)
    return float(values_S_R.mean(axis=1).std(ddof=1)) if len(values_S_R) > 1 else None


def spearman_of(x: np.ndarray, y: np.ndarray, seed: int) -> Correlation | None:
    """Spearman's rank correlation of pairs, ties sharing their mean rank, with a bootstrap interval over pairs.

    None where a side is constant or there are fewer than three pairs. Draws in which a side is constant have no correlation
    and are left out of the interval. Raises SiftuneError for a value that is not finite.
    """
    x_R, y_R = _checked(np.stack([x, y]), "pair")
    n = len(x_R)
    if n < 3 or np.ptp(x_R) == 0 or np.ptp(y_R) == 0:
        return None
    rho = float(_weighted_spearman(x_R, y_R, np.ones((1, n)))[0])
    rng = np.random.default_rng([seed, 0])
    rho_K = np.concatenate([_weighted_spearman(x_R, y_R, counts) for counts in _row_counts(n, rng)])
    low, high = _percentiles(rho_K[~np.isnan(rho_K)])
    return Correlation(rho, low, high) if high - low > 1e-9 else Correlation(rho, None, None)


def _checked(values_S_R: np.ndarray, column: str = "test row") -> np.ndarray:
    values_S_R = np.asarray(values_S_R, dtype=np.float64)
    if values_S_R.ndim != 2 or 0 in values_S_R.shape:
        raise ValueError(f"measurements are seeds by rows, not {values_S_R.shape}")
    if not np.isfinite(values_S_R).all():
        row = int(np.flatnonzero(~np.isfinite(values_S_R).all(axis=0))[0])
        raise SiftuneError(
            f"a measurement of {column} {row} is not a finite number: {values_S_R[:, row].tolist()}",
            todo="Train with a lower learning rate or in fp32, or look at the row",
        )
    return values_S_R


def _of_seeds(arms: Sequence[np.ndarray], like_S_R: np.ndarray | None) -> tuple[float, float]:
    """Variance that seeds give the sum or difference of these arms' means, and its degrees of freedom."""
    own, borrowed = [arm for arm in arms if len(arm) > 1], [arm for arm in arms if len(arm) == 1]
    shares = [(arm, 1 / len(arm)) for arm in own]
    if borrowed and like_S_R is not None and len(like_S_R) > 1:
        # One estimate, used once: its errors are the same for all that rests on it
        also = sum(1 / len(arm) for arm in own if np.array_equal(arm, like_S_R))
        shares = [(arm, share) for arm, share in shares if not np.array_equal(arm, like_S_R)]
        shares.append((_checked(like_S_R), len(borrowed) + also))
    parts = [(_between_seeds(arm) * share, len(arm) - 1) for arm, share in shares]
    total = sum(variance for variance, _ in parts)
    under = sum(variance**2 / freedom for variance, freedom in parts)
    return float(total), total**2 / under if under > 0 else np.inf


def _between_seeds(values_S_R: np.ndarray) -> float:
    """Variance of a seed's mean over rows beyond the rows' own noise."""
    n_seeds, n_rows = values_S_R.shape
    mean_S = values_S_R.mean(axis=1)
    noise_S_R = values_S_R - values_S_R.mean(axis=0) - mean_S[:, None] + values_S_R.mean()
    noise = float((noise_S_R**2).sum()) / ((n_seeds - 1) * (n_rows - 1))
    return max(float(mean_S.var(ddof=1)) - noise / n_rows, 0.0)


def _row_counts(n_rows: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each draw took each row (float64 [draws, rows]), a bounded number of draws at a time."""
    most = max(1, _NUMBERS_AT_ONCE // n_rows)
    for start in range(0, DRAWS, most):
        n_draws = min(most, DRAWS - start)
        drawn_K_R = rng.integers(n_rows, size=(n_draws, n_rows))
        drawn_K_R += np.arange(n_draws)[:, None] * n_rows
        counts = np.bincount(drawn_K_R.ravel(), minlength=n_draws * n_rows)
        yield counts.reshape(n_draws, n_rows).astype(np.float64)


def _ends(values_R: np.ndarray, variance: float, freedom: float, seed: int) -> tuple[float, float]:
    """The interval's ends from a value per row and what seeds add to their mean: each of Student's quantiles once, in any order."""
    n_rows, mean, rng = len(values_R), values_R.mean(), np.random.default_rng([seed, 0])
    around_R = (values_R - mean) * np.sqrt(n_rows / (n_rows - 1)) * stdtrit(n_rows - 1, 0.975) / ndtri(0.975)
    draws_K = mean + np.concatenate([counts @ around_R / n_rows for counts in _row_counts(n_rows, rng)])
    if variance > 0:
        share_K = (np.random.default_rng([seed, 1]).permutation(DRAWS) + 0.5) / DRAWS
        draws_K += np.sqrt(variance) * stdtrit(freedom, share_K)
    return _percentiles(draws_K)


def _percentiles(draws_K: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws_K, _TAILS)
    return float(low), float(high)


def _weighted_spearman(x_R: np.ndarray, y_R: np.ndarray, counts_K_R: np.ndarray) -> np.ndarray:
    """Spearman's rho of every draw, in which pair r occurs counts[k, r] times; NaN where a side is constant."""
    ranks = []
    for values_R in (x_R, y_R):
        _, group_R = np.unique(values_R, return_inverse=True)
        by_value = np.argsort(group_R, kind="stable")
        first_G = np.searchsorted(group_R[by_value], np.arange(group_R.max() + 1))
        count_K_G = np.add.reduceat(counts_K_R[:, by_value], first_G, axis=1)
        rank_K_G = np.cumsum(count_K_G, axis=1) - (count_K_G - 1) / 2
        ranks.append(rank_K_G[:, group_R] - (counts_K_R.sum(axis=1, keepdims=True) + 1) / 2)
    a, b = ranks  # their weighted means are 0
    over = (counts_K_R * a * b).sum(axis=1)
    under = np.sqrt((counts_K_R * a * a).sum(axis=1) * (counts_K_R * b * b).sum(axis=1))
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)
