"""The headline as Markdown, from results/TASK.json and TASK-once.json as `siftune compare` wrote them: arms down, tests across; means over seeds and what an interval says.

    python experiments/headline/table.py

Against random rows: ✓ better, ✗ worse, ≈ no significant difference. Below the tables, the default's difference to each other arm with its interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS

STEPS = "equal steps"
ORDER = (
    "untrained", "random", "full pool", "full pool, equal epochs", "blend", "less", "rds+", "less-paper", "embed", "bm25", "length",
)  # fmt: skip


def arms_of(task: str) -> dict[str, dict[str, Any]]:
    """A test's arms by name; those of the other reading than equal steps say so."""
    files = [HERE / "headline" / "results" / f"{task}{more}.json" for more in ("-once", "")]
    return {
        arm["name"] if table["reading"] == STEPS else f"{arm['name']}, {table['reading']}": arm
        for file in files
        for table in json.loads(file.read_text(encoding="utf-8"))["tables"]
        for arm in table["arms"]
    }


def cell(entry: dict[str, Any]) -> str:
    """A mean with its mark."""
    if (against := entry.get("against_random")) is None:
        return f"{entry['mean']:.3f}"
    mark = "≈" if not against["significant"] else "✓" if against["better"] else "✗"
    return f"{entry['mean']:.3f} {mark}"


def difference(entry: dict[str, Any]) -> str:
    """The default's mean minus the other arm's, with the interval."""
    other = entry["against_subject"]
    return f"{-other['mean']:+.3f} [{-other['high']:+.3f}, {-other['low']:+.3f}]"


def main() -> None:
    """Print a table a measure, and the differences."""
    tests = {task: arms_of(task) for task in TASKS}
    for measure in ("loss", "choice_loss", "accuracy"):
        tasks = [task for task in TASKS if measure in tests[task]["random"]["measures"]]
        for what, show in ((measure, cell), (f"the default's {measure} minus that of", difference)):
            print(f"\n{what}\n\n| | {' | '.join(tasks)} |\n|---|{'---:|' * len(tasks)}")
            for arm in ORDER:
                if not all(arm in tests[task] for task in tasks) or (show is difference and arm == "blend"):
                    continue
                seeds = "/".join(sorted({str(len(tests[task][arm]["seeds"])) for task in tasks}))
                cells = [show(tests[task][arm]["measures"][measure]) for task in tasks]
                print(f"| {arm}, {seeds} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
