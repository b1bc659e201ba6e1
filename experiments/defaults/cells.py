"""Every cell of the tuning parts that a work folder holds, as results/tuning.json: what was trained, mean measures.

python experiments/defaults/cells.py WORK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS, stamp

MEASURES = ("loss", "choice_loss", "correct")


def cells(work: Path, part: str) -> list[dict]:
    """The cells of a part of the tests, measured on the very rows that the part holds."""
    ids = {
        task: [json.loads(line)["id"] for line in (work / "parts" / part / f"{task}.jsonl").open(encoding="utf-8")]
        for task in TASKS
    }  # fmt: skip
    found = []
    for file in sorted((work / "run-sgd" / "proof" / "cells").glob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        if [score["id"] for score in cell["scores"]] == ids[cell["test"]]:
            found.append(cell)
    return found


def main(work: Path) -> None:
    """Write the table."""
    table: dict[str, dict[str, dict]] = {task: {} for task in TASKS}
    for cell in cells(work, "tuning"):
        about, scores = cell["about"], cell["scores"]
        means = {
            name: round(fmean(score[name] for score in scores), 4)
            for name in MEASURES
            if scores[0][name] is not None
        }
        arm = table[cell["test"]].setdefault(about["arm"], {"rows": about["rows"], "seeds": {}})
        arm["seeds"][str(about["seed"])] = means
    result = {**stamp(), "keep": "5%", "tests": table}
    (HERE / "defaults" / "results" / "tuning.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    for task, arms in table.items():
        for arm, found in sorted(
            arms.items(), key=lambda item: fmean(m["loss"] for m in item[1]["seeds"].values())
        ):
            print(task, arm, found["seeds"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
