"""From what every arm found in every round to medians, spreads and ratios."""

from __future__ import annotations

from statistics import median
from typing import Any

from engine_arms import Arm, Ratio

Rounds = dict[int, dict[str, Any]]


def summary(chosen: list[Arm], wanted: list[Ratio], found: dict[str, Rounds]) -> dict[str, Any]:
    """`arms`: one entry an arm, failures among them; `ratios`: those of which both sides were measured."""
    return {
        "arms": [_arm(arm, found[arm.name]) for arm in chosen],
        "ratios": [made for ratio in wanted if (made := _ratio(ratio, found)) is not None],
    }


def _arm(arm: Arm, rounds: Rounds) -> dict[str, Any]:
    done = _done(rounds)
    entry: dict[str, Any] = {"name": arm.name, "what": arm.what, "rounds": len(done)}
    if errors := [one["error"] for one in rounds.values() if "error" in one]:
        entry["error"] = errors[-1]
    if not done:
        return entry
    kept = ("rows", "dtype", "mean_loss", "direction", "parameters", "features", "versions")
    return {
        **entry,
        **{key: done[-1][key] for key in kept if key in done[-1]},
        "cpu_seconds_a_row": _spread([_cost(one) for one in done], 4),
        "cpu_seconds": {
            phase: round(median(one["cpu_seconds"][phase] for one in done), 2)
            for phase in done[-1]["cpu_seconds"]
        },
        "peak_mib": _spread([one["memory_mib"]["peak"] for one in done], 0),
        "over_load_mib": _spread([_over_load(one) for one in done], 0),
    }


def _ratio(ratio: Ratio, found: dict[str, Rounds]) -> dict[str, Any] | None:
    """The ratio inside each round, then the median over rounds; None where a side is missing."""
    of, over = _fastest(ratio.of, found), _fastest(ratio.over, found)
    if of is None or over is None:
        return None
    value = _peak if ratio.memory else _cost
    each = [
        value(found[of][number]) / value(found[over][number])
        for number in found[of].keys() & found[over].keys()
        if "error" not in found[of][number] and "error" not in found[over][number]
    ]
    if not each:
        return None
    middle = median(each)
    return {
        "name": ratio.name,
        "of": of,
        "over": over,
        "goal": f"{'≥' if ratio.at_least else '≤'} {ratio.goal:g}",
        "met": middle >= ratio.goal if ratio.at_least else middle <= ratio.goal,
        **_spread(each, 3),
    }


def _fastest(start: str, found: dict[str, Rounds]) -> str | None:
    """The arm of that name, else the fastest of those whose names begin so: a peer counts with its best settings."""
    if start in found:
        return start
    costs = {
        name: median(_cost(one) for one in done)
        for name, rounds in found.items()
        if name.startswith(start) and (done := _done(rounds))
    }
    return min(costs, key=costs.__getitem__) if costs else None


def _done(rounds: Rounds) -> list[dict[str, Any]]:
    return [one for one in rounds.values() if "error" not in one]


def _cost(one: dict[str, Any]) -> float:
    return one["cpu_seconds"]["gradients"] / one["rows"]


def _peak(one: dict[str, Any]) -> float:
    return one["memory_mib"]["peak"]


def _over_load(one: dict[str, Any]) -> float:
    return one["memory_mib"]["peak"] - one["memory_mib"]["loaded"]


def _spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }
