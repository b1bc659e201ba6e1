"""Section 9: what `compare`, `check` and `demo` measured in this run, read from `RUN/proof`."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from siftune.proof.measures import measured
from siftune.proof.show import against, arm_cells, table_title, with_interval
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json


def outcome_section(path: Path) -> dict[str, Any]:
    """Comparisons by test, the first-order check and the demo's measurement; each empty where it never ran."""
    proof = path / "proof"
    comparisons, unreadable = list[dict[str, Any]](), list[str]()
    for file in sorted(proof.glob("*/comparison.json")):
        try:
            comparisons.append(_comparison(file))
        except (KeyError, TypeError, StopIteration, SiftuneError):  # cut off by hand, or of another version
            unreadable.append(file.parent.name)
    check = read_json(proof / "check.json")["targets"] if (proof / "check.json").exists() else []
    demo = read_json(proof / "demo.json") if (proof / "demo.json").exists() else []
    return {
        "comparisons": comparisons,
        "unreadable": unreadable,
        "check": [
            {
                "target": of["name"],
                "sentence": of["sentence"],
                "checkpoints": [
                    {"checkpoint": p["checkpoint"], "batches": len(p["measured_K"]), **p["by_predicted"]}
                    for p in [*of["checkpoints"], of["overall"]]
                ],
            }
            for of in check
        ],
        "demo": [
            {
                "name": arm["name"],
                "rows": arm["n_rows"],
                "loss": arm["summary"]["loss"],
                "accuracy": arm["summary"]["accuracy"],
            }
            for arm in demo
        ],
    }


def plots_of(path: Path, test: str) -> list[str]:
    """The plots of a comparison as data addresses, in the order of its tables: an image keeps its styles to itself."""
    folder = path / "proof" / test
    files = [folder / "comparison.svg", *sorted(folder.glob("comparison-*.svg"))]
    return [
        f"data:image/svg+xml;base64,{b64encode(file.read_bytes()).decode('ascii')}"
        for file in files
        if file.exists()
    ]


def _comparison(file: Path) -> dict[str, Any]:
    found = read_json(file)
    return {
        "test": found["test"],
        "target": found["target"],
        "rows": found["n_rows"],
        "model": Path(found["model"]).name,
        "tables": [_table(table) for table in found["tables"]],
    }


def _table(table: dict[str, Any]) -> dict[str, Any]:
    measures = measured(table["arms"])
    first = {arm["name"]: arm["measures"][measures[0].name].get("against_random") for arm in table["arms"]}
    return {
        "title": table_title(table),
        "sentence": table["sentence"],
        "heads": [
            "trained on",
            "rows",
            "seeds",
            *(head for m in measures for head in (m.words, "against random")),
        ],
        "arms": [
            [
                arm["name"],
                f"{arm['n_rows']:,}",
                str(len(arm["seeds"])),
                *arm_cells(arm, measures, with_interval, against),
            ]
            for arm in table["arms"]
        ],
        "subject": table["subject"],
        "keep": table["keep"],
        "worse_than_random": [
            name for name, to in first.items() if to and to["significant"] and not to["better"]
        ],
    }
