"""Rules against walks written from their sentences: any subtasks, ties, rows without a score, rows that may not be chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siftune.selection.rules import order_of, scores_of


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Influence of few values, so that there are ties; NaN for the whole row."""
    n, v = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    value = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0])
    rows = [
        [math.nan] * v if draw(st.integers(0, 4)) == 0 else draw(st.lists(value, min_size=v, max_size=v))
        for _ in range(n)
    ]
    return {
        "influence": rows,
        "subtasks": draw(st.lists(st.sampled_from("abc"), min_size=v, max_size=v)),
        "may": draw(st.lists(st.booleans(), min_size=n, max_size=n)),
    }


def oracle(influence: list[list[float]], subtasks: list[str], may: list[bool], rule: str) -> list[int]:
    """The order, row by row."""

    def mean(row: int, name: str | None) -> float:
        values = [x for x, s in zip(influence[row], subtasks, strict=True) if name in (None, s)]
        return float(np.float32(np.mean(values)))

    scored = [row for row, values in enumerate(influence) if not math.isnan(values[0])]
    score = {
        row: mean(row, None) if rule == "mean" else max(mean(row, name) for name in subtasks)
        for row in scored
    }
    left = sorted((row for row in scored if may[row]), key=lambda row: (-score[row], row))
    if rule in ("round-robin", "by-subtask"):
        turns = list(range(len(subtasks))) if rule == "round-robin" else []
        names = list(dict.fromkeys(subtasks))
        rows_of = {name: [v for v, s in enumerate(subtasks) if s == name] for name in names}
        while not turns or (
            rule == "by-subtask" and any(rows_of.values())
        ):  # one target row of each subtask, then the next of each
            turns += [rows_of[name].pop(0) for name in names if rows_of[name]]
        waiting, left, turn = sorted(left), [], 0
        while waiting:
            best = max(waiting, key=lambda row: (influence[row][turns[turn % len(turns)]], -row))
            waiting.remove(best)
            left.append(best)
            turn += 1
    others = sorted((row for row in scored if not may[row]), key=lambda row: (-score[row], row))
    return left + others


@given(cases(), st.sampled_from(["top", "mean", "round-robin", "by-subtask"]))
def test_orders_are_those_of_the_walk(case: dict[str, Any], rule: Any) -> None:
    influence_N_V = np.array(case["influence"], dtype=np.float32)
    scores = scores_of(influence_N_V, case["subtasks"], rule)
    found = order_of(scores, influence_N_V, rule, np.array(case["may"]))
    assert found.tolist() == oracle(case["influence"], case["subtasks"], case["may"], rule)


def test_every_subtask_is_served_where_target_rows_outnumber_picks() -> None:
    """Subtasks of ten rows each, one after the other in the file; each target row has a pool row of its own."""
    n_subtasks, each = 6, 10
    influence_N_V = np.eye(n_subtasks * each, dtype=np.float32)
    subtasks = [str(s) for s in range(n_subtasks) for _ in range(each)]
    order = order_of(
        scores_of(influence_N_V, subtasks, "by-subtask"), influence_N_V, "by-subtask", np.ones(60, bool)
    )
    assert {subtasks[row] for row in order[:n_subtasks]} == set(subtasks)
    assert [sum(subtasks[row] == name for row in order[:15]) for name in "012345"] == [3, 3, 3, 2, 2, 2]
