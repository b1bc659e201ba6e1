"""How much do directions, centring and rules change what is chosen? Rows that two choices share, and where they come from.

    python experiments/defaults/overlap.py WORK/run [KEEP]

Reads the runs that run.py beside this made (RUN-sgd, RUN-adam, RUN-adam-precond); no model, no training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS, stamp
from siftune.pipeline.choosing import decide
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.session import Session

CHOICES = {
    "sgd": ("sgd", {}),
    "sgd, centred": ("sgd", {"centre": True}),
    "sgd, top": ("sgd", {"rule": "top"}),
    "adam": ("adam", {}),
    "adam, centred": ("adam", {"centre": True}),
    "adam, top": ("adam", {"rule": "top"}),
    "adam-precond": ("adam-precond", {}),
}


def main(run: Path, keep: str) -> None:
    """Write results/overlap.json."""
    found: dict[str, dict] = {}
    for task in TASKS:
        chosen: dict[str, set[int]] = {}
        sources: dict[str, dict[str, int]] = {}
        for name, (direction, settings) in CHOICES.items():
            path = run.with_name(f"{run.name}-{direction}")
            recipe = read_run_recipe(path).with_settings({**settings, "keep": keep})
            session = Session(path, recipe, Reporter(quiet=True), recipe)
            rows = decide(session, task).chosen.tolist()
            chosen[name] = set(rows)
            of_rows = [example.source for example in session.pool.examples_of(rows)]
            sources[name] = {
                s: of_rows.count(s) for s in sorted(set(of_rows), key=lambda s: -of_rows.count(s))
            }
        shared = {a: {b: len(chosen[a] & chosen[b]) for b in CHOICES} for a in CHOICES}
        found[task] = {"chosen": len(chosen["sgd"]), "shared": shared, "sources": sources}
    checkpoints = sorted(
        int(p.name) for p in (run.with_name(f"{run.name}-sgd") / "checkpoints").glob("[0-9]*")
    )
    result = {**stamp(), "keep": keep, "checkpoints": checkpoints, "tasks": found}
    out = HERE / "defaults" / "results" / "overlap.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for task, values in found.items():
        print(task, values["shared"]["sgd"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "5%")
