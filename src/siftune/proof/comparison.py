"""A comparison: arms that differ in the rows they were trained on, measured on the same test rows, with what can be said of them.

Every figure is a mean over seeds and test rows with a 95 % interval (statistics.py: test rows by bootstrap, the same for
all arms, and training seeds by Student's t); a difference is paired over test rows. Where its interval holds 0 the words are "no significant difference".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siftune.proof.cells import Cell
from siftune.proof.measures import MEASURES, Measure
from siftune.proof.statistics import difference_of, interval_of, spread_of


@dataclass(frozen=True)
class Arm:
    """One way to choose rows, trained once a seed.

    name:  as shown: a method, `full pool`, `untrained` …;  keep: its budget, None where it has none
    cells: one a seed, in the order of `seeds`
    """

    name: str
    keep: str | None
    n_rows: int
    n_tokens: int
    steps: int
    seeds: list[int]
    cells: list[Cell]


def compared(
    arms: Sequence[Arm], subject: str, measures: Sequence[Measure] = MEASURES, seed: int = 0
) -> list[dict[str, Any]]:
    """The arms with their figures, as JSON values, in the order given.

    subject: the name of the arm that the others are compared with. An arm of one seed is taken to vary as `random` does. Each arm gets, per measure, how it is shown (words,
    more_is_better, unit), mean, low, high, spread (over seeds), n, and its difference to `random` and to the subject (mean, low,
    high, significant; better = in the good direction).
    """
    values = [{m.name: _values(arm, m) for m in measures} for arm in arms]
    reference = {
        what: next((place for place, arm in enumerate(arms) if arm.name == name), None)
        for what, name in (("random", "random"), ("subject", subject))
    }
    found = []
    for place, arm in enumerate(arms):
        entries: dict[str, Any] = {}
        for measure in measures:
            values_S_R = values[place][measure.name]
            if values_S_R is None:
                continue
            random = reference["random"]
            like_S_R = None if random is None else values[random][measure.name]
            interval = interval_of(values_S_R, seed, like_S_R)
            if measure.unit == "share" and interval.low is not None and interval.high is not None:
                # What few seeds add may leave what a share can be
                interval = interval._replace(low=max(interval.low, 0.0), high=min(interval.high, 1.0))
            entry: dict[str, Any] = {
                "words": measure.words,
                "more_is_better": measure.more_is_better,
                "unit": measure.unit,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "spread": spread_of(values_S_R) if arm.steps else None,
                "n": values_S_R.shape[1],
            }
            for what, other in reference.items():
                if other is not None and other != place and values[other][measure.name] is not None:
                    entry[f"against_{what}"] = _difference(values, place, other, measure, seed, like_S_R)
            entries[measure.name] = entry
        found.append(
            {
                "name": arm.name,
                "keep": arm.keep,
                "n_rows": arm.n_rows,
                "n_tokens": arm.n_tokens,
                "steps": arm.steps,
                "seeds": arm.seeds,
                "measures": entries,
            }
        )
    return found


def _values(arm: Arm, measure: Measure) -> np.ndarray | None:
    """`values_S_R` over the rows that have this measure, None where none has. What was never trained comes twice: it varies by nothing."""
    rows = [r for r, score in enumerate(arm.cells[0].scores) if measure.value(score) is not None]
    if not rows:
        return None
    cells = arm.cells if arm.steps else arm.cells * 2
    return np.array([[measure.value(cell.scores[r]) for r in rows] for cell in cells], dtype=np.float64)


def _difference(
    values: Sequence[Mapping[str, np.ndarray | None]],
    place: int,
    other: int,
    measure: Measure,
    seed: int,
    like_S_R: np.ndarray | None,
) -> dict[str, Any]:
    """Arm `place` minus arm `other`. A pair is drawn once, in the order of the arms, so that both sides tell the same."""
    first, second = values[min(place, other)][measure.name], values[max(place, other)][measure.name]
    assert first is not None
    assert second is not None
    mean, low, high, significant = difference_of(first, second, seed, like_S_R)
    if place > other:
        mean, low, high = -mean, None if high is None else -high, None if low is None else -low
    better = mean > 0 if measure.more_is_better else mean < 0
    return {"mean": mean, "low": low, "high": high, "significant": significant, "better": bool(better)}
