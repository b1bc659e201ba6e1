"""Every cell that a work folder holds, by part of the tests, as results/PART.json: what was trained, mean measures.

    python experiments/cells.py WORK

A cell of an earlier work folder stays in the file, with the date and commit under which it was written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common import HERE, TASKS, stamp

MEASURES = ("loss", "choice_loss", "correct")
REFERENCES = ("random", "rds+", "less", "sgd-4-by-subtask", "family-all")
PLACES = (
    ("tuning", "run-sgd", "defaults"),
    ("target", "run-sgd", "defaults"),
    ("final", "run-sgd", "headline"),
    ("final", "run-ltd", "ltd"),
)
"""Part of the tests, run, and the experiment it belongs to."""


def cells(work: Path, run: str, part: str) -> list[dict[str, Any]]:
    """The cells that were measured on the very rows of a part of the tests."""
    ids = {}
    for task in TASKS:
        text = (work / "parts" / part / f"{task}.jsonl").read_text(encoding="utf-8")
        ids[task] = [json.loads(line)["id"] for line in text.split("\n") if line]
    files = sorted((work / run / "proof" / "cells").glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [cell for cell in found if [score["id"] for score in cell["scores"]] == ids[cell["test"]]]


def table(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By test, arm and seed: means, and loss minus that of REFERENCES with the same seed on the same rows, with 1.96 standard errors."""
    of = {(cell["test"], cell["about"]["arm"], cell["about"]["seed"]): cell["scores"] for cell in found}
    result: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    for (task, arm, seed), scores in sorted(of.items()):
        means: dict[str, Any] = {
            name: round(fmean(score[name] for score in scores), 4)
            for name in MEASURES
            if scores[0][name] is not None
        }
        for other in REFERENCES:
            if other != arm and (task, other, seed) in of:
                pairs = zip(scores, of[task, other, seed], strict=True)
                apart = [mine["loss"] - its["loss"] for mine, its in pairs]
                half = 1.96 * stdev(apart) / len(apart) ** 0.5
                means[f"to {other}"] = [round(fmean(apart), 4), round(half, 4)]
        result[task].setdefault(arm, {})[str(seed)] = means
    return result


def with_earlier(tests: dict[str, dict[str, Any]], file: Path) -> dict[str, dict[str, Any]]:
    """The tables with the cells that only an earlier file has."""
    earlier = json.loads(file.read_text(encoding="utf-8"))
    for task, arms in earlier["tests"].items():
        for arm, seeds in arms.items():
            mine = tests.setdefault(task, {}).setdefault(arm, {})
            for seed, means in seeds.items():
                mine.setdefault(seed, {"written": f"{earlier['date'][:10]} {earlier['commit']}", **means})
            tests[task][arm] = dict(sorted(mine.items()))
    return {task: dict(sorted(arms.items())) for task, arms in tests.items()}


def main(work: Path) -> None:
    """Write all tables."""
    for part, run, folder in PLACES:
        tests = {task: arms for task, arms in table(cells(work, run, part)).items() if arms}
        if not tests:
            continue
        file = HERE / folder / "results" / f"{part}.json"
        file.parent.mkdir(exist_ok=True)
        if file.exists():
            tests = with_earlier(tests, file)
        file.write_text(
            json.dumps({**stamp(), "keep": "5%", "part": part, "tests": tests}, indent=1) + "\n",
            encoding="utf-8",
        )
        for task, arms in tests.items():
            for arm, seeds in arms.items():
                print(folder, part, task, arm, seeds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
