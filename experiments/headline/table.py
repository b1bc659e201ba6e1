"""The headline as Markdown, from results/final.json: arms down, tests across; means over training seeds, and a mark against random rows.

    python experiments/headline/table.py

`pair` is `less` and `rds+` without `bm25`: what `blend` was until 2026-11-23. Below the tables, how far both are from random rows and from `rds+`, as d ± that bound.
A mark is of the mean distance d to random rows with the same seed on the same test rows: better ✓ or worse ✗ where |d| > √((1.96 e)² + (t s)²/n), e the root
mean square of the n seeds' standard errors over test rows, s the standard deviation of d between seeds, t Student's 97.5 % quantile at n - 1 degrees of freedom. An arm of one seed knows nothing of s: marked in brackets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS

ORDER = (
    "untrained", "random", "full", "full-epochs", "blend", "less", "rds+", "bm25", "pair", "less-paper", "embed", "length",
)  # fmt: skip


def main() -> None:
    """Print a table a measure."""
    file = HERE / "headline" / "results" / "final.json"
    tests = json.loads(file.read_text(encoding="utf-8"))["tests"]
    for measure, digits in (("loss", 3), ("choice_loss", 3), ("correct", 3)):
        tasks = [task for task in TASKS if measure in tests[task]["random"]["0"]]
        print(f"\n{measure}\n\n| 100 rows by | {' | '.join(tasks)} |\n|---|{'---:|' * len(tasks)}")
        for arm in ORDER:
            if all(arm in tests[task] for task in tasks):
                found = [tests[task][arm] for task in tasks]
                n = "/".join(sorted({str(len(seeds)) for seeds in found}))
                cells = [mean_and_mark(seeds, measure, digits) for seeds in found]
                print(f"| {arm}, {n} | {' | '.join(cells)} |")

    for arm in ("blend", "pair"):
        for other in ("random", "rds+"):
            print(f"\n{arm}'s loss minus that of {other} with the same seed")
            for task in TASKS:
                seeds = tests[task].get(arm, {}).values()
                if apart := [seed[f"to {other}"] for seed in seeds if f"to {other}" in seed]:
                    d, half = distance(apart)
                    print(f"{task}: {d:+.3f} ± {half:.3f}, {len(apart)} seeds")


def mean_and_mark(seeds: dict[str, Any], measure: str, digits: int) -> str:
    """The mean over seeds; losses with their mark."""
    mean = f"{fmean(seed[measure] for seed in seeds.values()):.{digits}f}"
    apart = [seed["to random"] for seed in seeds.values() if "to random" in seed]
    if measure != "loss" or not apart:
        return mean
    d, half = distance(apart)
    mark = "≈" if abs(d) <= half else "✓" if d < 0 else "✗"
    return f"{mean} {mark}" if len(apart) > 1 else f"{mean} ({mark})"


def distance(apart: list[list[float]]) -> tuple[float, float]:
    """Mean distance and half-width from each seed's distance and half-width over test rows."""
    distances, halves = zip(*apart, strict=True)
    n = len(distances)
    between = (student_t.ppf(0.975, n - 1) * stdev(distances)) ** 2 / n if n > 1 else 0.0
    return fmean(distances), (fmean(half**2 for half in halves) + between) ** 0.5


if __name__ == "__main__":
    main()
