"""Cells: one training measured on one test, a file each in `RUN/proof/cells/`, so that a comparison that was cut off goes on.

A cell's name says what it is by content: the digest of what was trained (model, rows, `Training`) and of what it was measured
with (test rows, how). Whatever asks the same question, under whatever name, finds the same cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siftune.model.warmup import Row
from siftune.proof.evaluate import RowScore
from siftune.proof.measures import DocumentScore, Score
from siftune.proof.train import Training
from siftune.records.files import digest_of, read_json, write_json

UNTRAINED = "untrained"


def training_id(model: Mapping[str, Any], rows: Sequence[Row], training: Training | None) -> str:
    """The name of a training; None = the model as it is, which has none."""
    if training is None:
        return f"{UNTRAINED}-{digest_of(dict(model))[:16]}"
    content = hashlib.sha256()
    for ids, trained in rows:
        content.update(len(ids).to_bytes(8, "little"))
        content.update(np.asarray(ids, dtype="<i8").tobytes())
        content.update(np.asarray(trained, dtype=np.uint8).tobytes())
    return digest_of([dict(model), asdict(training), content.hexdigest()])[:24]


@dataclass(frozen=True)
class Cell:
    """One training measured on one test.

    about: what was trained and measured, for people and reports (method, budget, seed, steps, seconds …)
    """

    test: str
    about: dict[str, Any]
    scores: Sequence[Score]


def cell_file(proof: Path, test: str, training: str, measured: Mapping[str, Any]) -> Path:
    """Where a cell is. `measured`: test rows' digest and how they were measured."""
    return proof / "cells" / f"{test}-{training}-{digest_of(dict(measured))[:12]}.json"


def write_cell(file: Path, cell: Cell) -> None:
    """Write a cell whole."""
    write_json(file, {"test": cell.test, "about": cell.about, "scores": [asdict(s) for s in cell.scores]})


def read_cell(file: Path) -> Cell:
    """Read a cell; SiftuneError where it is broken."""
    found = read_json(file)
    scores = [DocumentScore(**score) if "values" in score else RowScore(**score) for score in found["scores"]]
    return Cell(found["test"], found["about"], scores)
