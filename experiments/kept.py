"""Scores of every test row of every cell, kept in the repository without a word of the rows: trainings cost hours, and a work folder may be lost.

    python experiments/kept.py keep WORK/run-sgd final headline      # RUN/proof/cells -> headline/results/scores.json
    python experiments/kept.py restore WORK/run-sgd final headline   # and back: `compare` finds there what was measured before

The part of the tests (parts.py, beside RUN) says in what order rows come. A cell's name says by content what was trained and measured, so that
an old score can't be taken for that of another choice, model or test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import HERE, stamp
from siftune.proof.cells import Cell, read_cell, write_cell
from siftune.proof.evaluate import RowScore

SCORES = ("loss", "choice_loss", "correct")
ABOUT = ("arm", "keep", "seed", "rows", "training", "seconds_training", "seconds_measuring")


def ids_of(run: Path, part: str, task: str) -> list[str]:
    """Names of a part's rows, in order."""
    text = (run.parent / "parts" / part / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["id"] for line in text.split("\n") if line]


def keep(run: Path, part: str, experiment: str) -> Path:
    """Write the scores of all cells of a part; those that were kept before and aren't in this run stay."""
    file = HERE / experiment / "results" / "scores.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else {}
    for path in sorted((run / "proof" / "cells").glob("*.json")):
        cell = read_cell(path)
        if [score.id for score in cell.scores] == ids_of(run, part, cell.test):  # pyright: ignore[reportAttributeAccessIssue]
            kept[path.name] = {
                "test": cell.test,
                **{name: cell.about.get(name) for name in ABOUT},
                **_columns(cell),
            }
    lines = ",\n".join(f'  "{name}": {json.dumps(kept[name])}' for name in sorted(kept))
    head = json.dumps({**stamp(), "part": part})[:-1]
    file.write_text(f'{head}, "cells": {{\n{lines}\n}}}}\n', encoding="utf-8")
    return file


def _columns(cell: Cell) -> dict[str, list[Any]]:
    found = {name: [getattr(score, name) for score in cell.scores] for name in SCORES}
    return {
        name: [round(float(value), 4) for value in values]
        for name, values in found.items()
        if None not in values
    }


def restore(run: Path, part: str, experiment: str) -> int:
    """Write the cells that this run hasn't; how many."""
    file, n = HERE / experiment / "results" / "scores.json", 0
    kept = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else {}
    for name, cell in kept.items():
        path = run / "proof" / "cells" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            ids = ids_of(run, part, cell["test"])
            about = {key: cell[key] for key in ABOUT}
            write_cell(path, Cell(cell["test"], about, [_score(cell, i, ids[i]) for i in range(len(ids))]))
            n += 1
    return n


def _score(cell: dict[str, Any], i: int, row_id: str) -> RowScore:
    correct = bool(cell["correct"][i]) if "correct" in cell else None
    choice_loss = cell["choice_loss"][i] if "choice_loss" in cell else None
    return RowScore(row_id, cell["loss"][i], correct=correct, choice_loss=choice_loss)


if __name__ == "__main__":
    doing = {"keep": keep, "restore": restore}[sys.argv[1]]
    print(doing(Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
