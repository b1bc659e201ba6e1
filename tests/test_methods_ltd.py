"""LTD: farthest-first against pairwise distances, and how family, templates and k-centre make the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances

from siftune.methods import ltd
from siftune.methods.length import length_scores
from siftune.methods.ltd import LtdResult, k_centre, ltd_scores
from siftune.records.errors import SiftuneError

COUNT = 12


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def around(centres: np.ndarray, n: int, spread: float = 0.2, seed: int = 0) -> np.ndarray:
    """n unit vectors about each centre, one centre after the other."""
    noise = np.random.default_rng(seed).normal(size=(len(centres) * n, centres.shape[1]))
    return unit(np.repeat(centres, n, axis=0) + spread * noise)


POOL = around(np.eye(8)[:4], 25)  # four heaps of 25 rows
TARGET = around(np.eye(8)[1:2], 5, seed=1)  # in the second


def asked(vectors_N_D: np.ndarray = POOL, vectors_V_D: np.ndarray = TARGET, **changes: Any) -> LtdResult:
    settings: dict[str, Any] = {
        "family_N": None,
        "template_N": None,
        "clusters": 4,
        "templates": None,
        "count": COUNT,
        "seed": 0,
    }
    return ltd_scores(vectors_N_D, vectors_V_D, **{**settings, **changes})


def ordered(result: LtdResult) -> np.ndarray:
    """Rows by score, ties by row, as a selection orders them."""
    scored = np.flatnonzero(~np.isnan(result.score_N))
    return scored[np.argsort(-result.score_N[scored], kind="stable")]


def farthest_first(vectors: np.ndarray, start: int, count: int) -> tuple[list[int], list[float]]:
    distance = pairwise_distances(vectors.astype(np.float64))
    taken, radius = [start], [2.0]
    while len(taken) < min(count, len(vectors)):
        left = [row for row in range(len(vectors)) if row not in taken]
        near = {row: min(distance[row, other] for other in taken) for row in left}
        taken.append(max(left, key=lambda row: (near[row], -row)))
        radius.append(near[taken[-1]])
    return taken, radius


@given(st.integers(2, 40), st.integers(2, 6), st.integers(1, 45), st.integers(0, 10**6))
def test_each_row_taken_is_the_farthest_from_those_before(n: int, d: int, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.normal(size=(n, d)))
    start = int(draw.integers(n))
    taken_K, radius_K = k_centre(vectors, start, count)
    assert taken_K[0] == start
    assert len(set(taken_K.tolist())) == len(taken_K) == min(count, n)
    assert (np.diff(radius_K) <= 0).all()
    distance = pairwise_distances(vectors.astype(np.float64))
    rounding = 2 * ltd.SAME
    for k in range(1, len(taken_K)):
        near = distance[:, taken_K[:k]].min(axis=1)
        assert near[taken_K[k]] >= near.max() - rounding
        assert abs(near[taken_K[k]] - radius_K[k]) < rounding


def test_k_centre_is_farthest_first_on_real_distances() -> None:
    taken_K, radius_K = k_centre(POOL, 7, 60)
    taken, radius = farthest_first(POOL, 7, 60)
    assert taken_K.tolist() == taken
    np.testing.assert_allclose(radius_K, radius, atol=1e-5)


def test_equal_rows_come_last_in_row_order_and_opposite_ones_after_the_start() -> None:
    vectors = unit(np.array([[0, 1], [-1, 0], [0, 1], [1, 0], [0, 1.0], [1, 0]]))
    taken_K, radius_K = k_centre(vectors, 3, 6)
    assert taken_K.tolist() == [3, 1, 0, 2, 4, 5]
    np.testing.assert_allclose(radius_K, [2, 2, np.sqrt(2), 0, 0, 0], rtol=1e-6)
    assert radius_K[0] > radius_K[1]  # so that sorting by score gives the order taken


def test_repeats_of_real_rows_are_at_distance_zero() -> None:
    vectors = np.repeat(around(np.eye(64)[:3], 4), 3, axis=0)
    _, radius_K = k_centre(vectors, 5, len(vectors))
    assert (radius_K[:12] > 0).all()
    assert (radius_K[12:] == 0).all()


@given(st.permutations(range(30)))
def test_order_of_the_pool_does_not_matter(order: list[int]) -> None:
    vectors = around(np.eye(6)[:3], 10, seed=3)
    taken_K, _ = k_centre(vectors, 4, 9)
    moved_K, _ = k_centre(vectors[order], order.index(4), 9)
    assert [order[row] for row in moved_K] == taken_K.tolist()


def test_sorting_by_score_gives_taken_rows_then_the_family_then_the_others() -> None:
    result = asked()
    family = np.arange(25, 50)
    assert np.flatnonzero(result.family_N).tolist() == family.tolist()
    centroid = TARGET.mean(axis=0)
    start = family[np.argmax(POOL[family] @ centroid)]
    taken = family[farthest_first(POOL[family], start - 25, COUNT)[0]]
    order = ordered(result)
    assert order[:COUNT].tolist() == taken.tolist() == result.taken_K.tolist()
    rest = np.setdiff1d(family, taken)
    to_taken = pairwise_distances(POOL[rest], POOL[taken]).min(axis=1)
    assert order[COUNT:25].tolist() == rest[np.argsort(-to_taken, kind="stable")].tolist()
    np.testing.assert_allclose(result.score_N[rest], to_taken, atol=1e-5)
    others = np.setdiff1d(np.arange(100), family)
    assert order[25:].tolist() == others[np.argsort(-(POOL[others] @ centroid), kind="stable")].tolist()


def test_a_given_family_takes_the_place_of_clusters() -> None:
    family_N = np.arange(100) % 2 == 0
    result = asked(family_N=family_N)
    assert result.cluster_N is None
    assert result.family_N.tolist() == family_N.tolist()
    assert (result.taken_K % 2 == 0).all()
    assert sorted(asked(family_N=family_N, count=10**6).taken_K) == list(range(0, 100, 2))


def test_every_cluster_in_which_a_target_row_falls_is_family() -> None:
    result = asked(vectors_V_D=np.concatenate([TARGET, POOL[80:81]]))
    assert np.flatnonzero(result.family_N).tolist() == [*range(25, 50), *range(75, 100)]
    assert asked(clusters=1).family_N.all()
    cluster_N = asked(clusters=None).cluster_N
    assert cluster_N is not None
    assert len(np.unique(cluster_N)) == 7  # sqrt(100 / 2)


def test_only_the_nearest_templates_are_kept() -> None:
    names: list[str | None] = [None if i % 5 == 4 else f"template {i % 5}" for i in range(100)]
    family = np.arange(25, 50)
    cosine = POOL @ TARGET.mean(axis=0)
    nearness = {
        name: np.mean([cosine[row] for row in family if names[row] == name]) for name in set(names) if name
    }
    expected = sorted(nearness, key=lambda name: -nearness[name])[:2]
    result = asked(template_N=names, templates=2)
    assert result.templates == expected
    assert np.flatnonzero(result.family_N).tolist() == [row for row in family if names[row] in expected]
    assert asked(template_N=names, templates=9).family_N.sum() == 20  # rows without a template belong to none
    equal = asked(np.repeat(POOL[30:31], 6, axis=0), template_N=["b", "a"] * 3, templates=1, clusters=1)
    assert equal.templates == ["a"]


def test_rows_without_a_vector_have_no_score_and_change_nothing() -> None:
    holes = POOL.copy()
    holes[[0, 30]] = np.nan
    result, without = asked(holes), asked(np.delete(POOL, [0, 30], axis=0))
    assert np.isnan(result.score_N[[0, 30]]).all()
    np.testing.assert_allclose(np.delete(result.score_N, [0, 30]), without.score_N, atol=1e-6)
    assert result.cluster_N is not None
    assert result.cluster_N[[0, 30]].tolist() == [-1, -1]


@pytest.mark.parametrize("whole", [ltd.WHOLE_KMEANS, 10])
def test_the_same_for_a_seed(
    whole: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(ltd, "WHOLE_KMEANS", whole)
    repeated = np.concatenate([POOL, POOL[:20]])
    for clusters in (3, 110):
        first, again = (asked(repeated, clusters=clusters, seed=5) for _ in range(2))
        np.testing.assert_array_equal(first.score_N, again.score_N)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"family_N": np.zeros(100, dtype=bool)}, "family"),
        ({"clusters": 0}, "clusters"),
        ({"clusters": 101}, "clusters"),
        ({"templates": 0, "template_N": ["a"] * 100}, "templates"),
        ({"templates": 1}, "template_column"),
        ({"templates": 1, "template_N": [None] * 100}, "template_column"),
        ({"vectors_N_D": np.full_like(POOL, np.nan), "clusters": None}, "family"),
    ],
)
def test_errors_name_the_setting(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(SiftuneError) as raised:
        asked(**changes)
    assert raised.value.where == where


def test_length_scores_are_the_trained_tokens() -> None:
    found = length_scores(np.array([3, 0, 12], dtype=np.int32))
    np.testing.assert_array_equal(found, np.array([3, np.nan, 12], dtype=np.float32))
