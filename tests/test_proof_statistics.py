"""Intervals, differences and correlations: against SciPy and formulas, and do they hold what they promise?"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from siftune.proof import statistics
from siftune.proof.statistics import Difference, Interval, difference_of, interval_of, spearman_of, spread_of
from siftune.records.errors import SiftuneError


def measured(seed: int, n_seeds: int, n_rows: int, *, row: float = 1, by_seed: float = 0, noise: float = 0):
    """Values around 0: what rows differ in, what seeds differ in, and the rest, by their standard deviations."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(1, n_rows)) * row, rng.normal(size=(n_seeds, 1)) * by_seed
    return parts[0] + parts[1] + rng.normal(size=(n_seeds, n_rows)) * noise


def ends(found: Interval | Difference) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_one_seed_is_the_percentile_bootstrap_of_scipy():
    values_S_R = np.random.default_rng(1).exponential(size=(1, 80))
    found, mean = interval_of(values_S_R, 0), values_S_R.mean()
    theirs = scipy.stats.bootstrap(
        values_S_R, np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    widened = np.sqrt(80 / 79) * scipy.stats.t.ppf(0.975, 79) / scipy.stats.norm.ppf(0.975)
    expected = [mean + widened * (end - mean) for end in theirs]
    assert found.mean == pytest.approx(mean)
    assert ends(found) == pytest.approx(expected, abs=0.02 * np.ptp(theirs))


def test_the_width_is_that_of_both_levels_together():
    values_S_R = measured(2, 5, 60, by_seed=0.3)  # no noise: what rows and what seeds vary by add exactly
    of_rows = np.sqrt(values_S_R.mean(axis=0).var() / 59) * scipy.stats.t.ppf(0.975, 59) / 1.96
    of_seeds = np.sqrt(values_S_R.mean(axis=1).var(ddof=1) / 5)
    rng = np.random.default_rng(9)
    draws = of_rows * rng.normal(size=1_000_000) + of_seeds * rng.standard_t(4, size=1_000_000)
    assert np.ptp(ends(interval_of(values_S_R, 0))) == pytest.approx(
        np.ptp(np.percentile(draws, [2.5, 97.5])), rel=0.05
    )


def test_seeds_that_decide_alone_are_students_t_and_welchs():
    """Rows that are all alike: what is left is a plain sample of trainings, for which SciPy has the intervals."""
    one, other = np.array([[0.3], [0.5], [1.0], [0.2]]), np.array([[2.0], [0.1], [0.4]])
    a, b = one + np.zeros((1, 30)), other + np.zeros((1, 30))
    theirs = scipy.stats.t.interval(0.95, 3, loc=one.mean(), scale=scipy.stats.sem(one[:, 0]))
    assert ends(interval_of(a, 0)) == pytest.approx(theirs, rel=0.05, abs=0.02)
    welch = scipy.stats.ttest_ind(one[:, 0], other[:, 0], equal_var=False).confidence_interval(0.95)
    assert ends(difference_of(a, b, 0)) == pytest.approx((welch.low, welch.high), rel=0.05)


def test_an_arm_of_one_seed_is_taken_to_vary_as_another_does():
    one, other = np.zeros((1, 30)), np.array([[2.0], [0.1], [0.4]]) + np.zeros((1, 30))
    t, mean, std = scipy.stats.t.ppf(0.975, 2), other.mean(), other[:, 0].std(ddof=1)
    assert ends(interval_of(one, 0, other)) == pytest.approx((-t * std, t * std), rel=0.02)
    half = t * std * np.sqrt(1 + 1 / 3)
    assert ends(difference_of(other, one, 0, other)) == pytest.approx((mean - half, mean + half), rel=0.02)
    assert ends(difference_of(one, other, 0, other)) == pytest.approx((-mean - half, half - mean), rel=0.02)
    half = t * std * np.sqrt(2)
    assert ends(difference_of(one, one + 1, 0, other)) == pytest.approx((-1 - half, half - 1), rel=0.02)
    assert ends(difference_of(one, one + 1, 0)) == (-1, -1), "nothing is known of seeds"
    third = np.array([[0.0], [1.0], [2.0], [3.0]]) + np.zeros((1, 30))
    of_one, of_third = std**2, third[:, 0].var(ddof=1) / 4
    freedom = (of_one + of_third) ** 2 / (of_one**2 / 2 + of_third**2 / 3)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(of_one + of_third)
    assert ends(difference_of(third, one, 0, other)) == pytest.approx((1.5 - half, 1.5 + half), rel=0.02)
    never_trained = np.concatenate([one, one])
    half = t * std / np.sqrt(3)
    assert ends(difference_of(other, never_trained, 0, other)) == pytest.approx(
        (mean - half, mean + half), rel=0.02
    )
    assert ends(interval_of(never_trained, 0, other)) == (0, 0)


@pytest.mark.parametrize(
    ("n_seeds", "by_seed", "noise"), [(1, 0, 0.3), (3, 0.3, 0.3), (3, 0, 1), (2, 0.5, 0)]
)
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(
    n_seeds: int, by_seed: float, noise: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    trials, held = 300, 0
    for trial in range(trials):
        values_S_R = measured(trial, n_seeds, 80, by_seed=by_seed, noise=noise)
        low, high = ends(interval_of(values_S_R, trial))
        held += low <= 0 <= high
    assert 0.915 <= held / trials <= 0.99


@pytest.mark.parametrize("seeds", [(3, 3), (3, 2), (2, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize(("by_seed", "noise"), [(0.5, 0.3), (0.1, 1), (0, 1)])
def test_arms_without_a_difference_are_rarely_told_apart(
    seeds: tuple[int, int], by_seed: float, noise: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    told = 0
    for trial in range(200):
        rows = measured(trial, 1, 80, row=3)
        a, b, like = (
            rows + measured(1000 * arm + trial, n_seeds, 80, row=0, by_seed=by_seed, noise=noise)
            for arm, n_seeds in enumerate((*seeds, 3), start=1)
        )
        told += difference_of(a, b, trial, like).significant
    assert told / 200 <= 0.095  # 5 % and three standard errors


@pytest.mark.parametrize("n_rows", [2, 3, 5, 10, 20])
def test_few_test_rows_tell_equal_arms_apart_as_rarely(n_rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    told = 0
    for trial in range(300):
        rows = measured(trial, 1, n_rows, row=3)
        a, b = (rows + measured(1000 * arm + trial, 3, n_rows, row=0.3) for arm in (1, 2))
        told += difference_of(a, b, trial).significant
    assert told / 300 <= 0.09


def test_pairing_over_rows_finds_what_two_intervals_hide():
    rows = measured(0, 1, 100, row=5)
    better, worse = rows - 0.2 + measured(1, 1, 100, row=0.1), rows + measured(2, 1, 100, row=0.1)
    first, second = interval_of(better, 0), interval_of(worse, 0)
    assert first.high is not None
    assert second.low is not None
    assert first.high > second.low, "the intervals overlap"
    found = difference_of(better, worse, 0)
    assert found.significant
    differences = (better - worse)[0]
    half = scipy.stats.sem(differences) * 1.96
    assert (found.mean, found.low, found.high) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half), abs=0.1 * half
    )


def test_a_difference_is_the_first_arm_minus_the_second():
    low, high = measured(0, 2, 50, noise=0.1), measured(0, 2, 50, noise=0.1) + 1
    up, down = difference_of(high, low, 0), difference_of(low, high, 0)
    assert (up.mean, down.mean) == pytest.approx((1, -1))
    assert up.low is not None
    assert down.high is not None
    assert (up.low > 0, up.significant) == (True, True)
    assert (down.high < 0, down.significant) == (True, True)


def test_seeds_of_the_arms_are_drawn_each_for_itself():
    by_seed = np.array([[-1.0], [1.0]]) + np.zeros((2, 30))
    found = difference_of(by_seed, by_seed[::-1].copy(), 0)
    assert found.mean == 0
    assert found.low is not None
    assert found.low < -1, "seeds that happen to be numbered alike are not paired"


def test_the_same_measurements_differ_by_nothing():
    for n_seeds in (1, 3):
        values_S_R = measured(0, n_seeds, 40, by_seed=1)
        assert difference_of(values_S_R, values_S_R.copy(), 0) == (0.0, 0.0, 0.0, False)


def test_a_single_row_has_no_interval():
    one, other = np.array([[1.0], [3.0]]), np.array([[7.0]])
    assert interval_of(one, 0) == (2.0, None, None)
    assert difference_of(one, other, 0) == (-5.0, None, None, False)


def test_numbers_depend_on_the_seed_and_not_on_how_many_draws_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    a, b = measured(0, 3, 37, by_seed=0.2), measured(1, 2, 37, by_seed=0.2)
    x, y = a[0], a[0] + b[0]
    before = interval_of(a, 5), difference_of(a, b, 5), spearman_of(x, y, 5)
    assert (interval_of(a, 5), difference_of(a, b, 5), spearman_of(x, y, 5)) == before
    assert interval_of(a, 6) != before[0]
    monkeypatch.setattr(statistics, "_NUMBERS_AT_ONCE", 37 * 333)
    for after, was in zip(
        (interval_of(a, 5), difference_of(a, b, 5), spearman_of(x, y, 5)), before, strict=True
    ):
        assert after == pytest.approx(was, rel=1e-9)


def test_the_order_of_rows_and_seeds_matters_by_no_more_than_the_draws_do():
    values_S_R = measured(3, 4, 60, by_seed=0.3)
    rng = np.random.default_rng(0)
    shuffled = values_S_R[rng.permutation(4)][:, rng.permutation(60)]
    found, other = interval_of(values_S_R, 0), interval_of(shuffled, 0)
    width = np.ptp(ends(found))
    assert other.mean == pytest.approx(found.mean)
    assert ends(other) == pytest.approx(ends(found), abs=0.04 * width)
    assert ends(interval_of(values_S_R, 1)) == pytest.approx(ends(found), abs=0.04 * width)


def test_spread_is_over_seeds():
    assert spread_of(np.array([[1.0, 3.0], [5.0, 7.0]])) == pytest.approx(np.std([2, 6], ddof=1))
    assert spread_of(np.array([[1.0, 3.0]])) is None


def test_spearman_is_scipys_with_ties_and_in_every_draw():
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=50).astype(float), rng.integers(4, size=50).astype(float)
    found = spearman_of(x, x + y, 0)
    assert found is not None
    assert found.rho == pytest.approx(scipy.stats.spearmanr(x, x + y)[0])
    draws = [rng.integers(50, size=50) for _ in range(2000)]
    theirs = np.percentile([scipy.stats.spearmanr(x[i], (x + y)[i])[0] for i in draws], [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.03)


def test_spearman_of_little_or_nothing():
    x = np.arange(5.0)
    for sign in (1, -1):  # a perfect order has no interval: all draws are as perfect
        found = spearman_of(x, sign * np.exp(x), 0)
        assert found is not None
        assert found.rho == pytest.approx(sign)
        assert (found.low, found.high) == (None, None)
    assert spearman_of(x, np.ones(5), 0) is None
    assert spearman_of(np.ones(5), x, 0) is None
    assert spearman_of(x[:2], x[:2], 0) is None


def test_what_is_no_number_or_no_pair_is_refused():
    values_S_R = np.ones((2, 3))
    values_S_R[1, 2] = np.nan
    for call in (lambda v: interval_of(v, 0), spread_of, lambda v: difference_of(np.ones((1, 3)), v, 0)):
        with pytest.raises(SiftuneError, match="test row 2"):
            call(values_S_R)
    with pytest.raises(SiftuneError, match="pair 1"):
        spearman_of(np.arange(3.0), np.array([1, np.inf, 2]), 0)
    with pytest.raises(ValueError, match="can't be paired"):
        difference_of(np.ones((1, 3)), np.ones((1, 4)), 0)
    with pytest.raises(ValueError, match="seeds by rows"):
        interval_of(np.ones(3), 0)
