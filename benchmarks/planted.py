"""Does a run find the rows that teach the target? Recall at 5 % of planted rows, by direction, rule and centring.

Tiny random models (two layers), 240 rows of which 12 are planted, 6 target rows, everything else as a run's defaults. About five
minutes on one core:

    OMP_NUM_THREADS=1 python benchmarks/planted.py
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from pipeline_helpers import N_PLANTED, recipe, write_inputs
from record import write_result
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run, select

ARCHITECTURES, SEEDS = ("llama", "gpt2", "qwen2", "gemma"), (0, 1, 2)
DIRECTIONS = ("sgd", "adam", "adam-less", "adam-precond")
CHOICES = {
    "round-robin": {"rule": "round-robin"},
    "top": {"rule": "top"},
    "round-robin, centred": {"rule": "round-robin", "centre": True},
    "top, centred": {"rule": "top", "centre": True},
}


def main() -> None:
    quiet = Reporter(quiet=True)
    cells = []
    for arch, seed, direction in product(ARCHITECTURES, SEEDS, DIRECTIONS):
        with tempfile.TemporaryDirectory() as folder:
            inputs = write_inputs(Path(folder), arch)
            out = Path(folder) / "run"
            run(recipe(inputs, seed=seed, direction=direction), out, reporter=quiet)
            for place, (choice, settings) in enumerate(CHOICES.items()):
                name = f"choice-{place}"
                rows = select(out, {**settings, "name": name}, reporter=quiet).selections[name].rows()
                recall = sum(row["source"] == "planted" for row in rows) / N_PLANTED
                cells.append(
                    {"arch": arch, "seed": seed, "direction": direction, "choice": choice, "recall": recall}
                )
            rows = (
                select(out, {"method": "random", "seed": seed, "name": "random"}, reporter=quiet)
                .selections["random"]
                .rows()
            )
            recall = sum(row["source"] == "planted" for row in rows) / N_PLANTED
            cells.append(
                {"arch": arch, "seed": seed, "direction": direction, "choice": "random", "recall": recall}
            )
    table = {
        f"{direction}, {choice}": {
            "mean": round(mean(found), 4),
            "worst": round(min(found), 4),
            "runs": len(found),
        }
        for direction in DIRECTIONS
        for choice in (*CHOICES, "random")
        if (found := [c["recall"] for c in cells if c["direction"] == direction and c["choice"] == choice])
    }
    print(write_result("planted", {"recall_at_5_percent": table, "cells": cells}))
    for name, figures in table.items():
        print(f"{name:<36} mean {figures['mean']:.3f}  worst {figures['worst']:.3f}")


if __name__ == "__main__":
    main()
