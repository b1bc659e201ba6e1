"""The headline as Markdown, from results/TASK.json: arms down, tests across, the mark against random behind each figure.

python experiments/headline/table.py [MEASURE …]        loss, choice_loss, accuracy; default all
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS
from siftune.proof.measures import MEASURES
from siftune.proof.show import against_short

ORDER = ("untrained", "random", "full pool", "blend", "less", "rds+", "less-paper", "bm25", "embed", "length")


def main(names: list[str]) -> None:
    """Print a table a measure."""
    found = {
        task: json.loads((HERE / "headline" / "results" / f"{task}.json").read_text(encoding="utf-8"))
        for task in TASKS
    }
    for measure in MEASURES:
        if names and measure.name not in names:
            continue
        arms = {task: {arm["name"]: arm for arm in found[task]["tables"][0]["arms"]} for task in TASKS}
        tasks = [task for task in TASKS if measure.name in arms[task]["random"]["measures"]]
        if not tasks:
            continue
        print(f"\n{measure.words}, {'more' if measure.more_is_better else 'less'} is better\n")
        print("| trained on | " + " | ".join(tasks) + " |\n|---|" + "---:|" * len(tasks))
        for name in ORDER:
            if name in arms[tasks[0]]:
                print(f"| {name} | " + " | ".join(_cell(arms[task][name], measure) for task in tasks) + " |")


def _cell(arm: dict, measure) -> str:
    entry = arm["measures"][measure.name]
    mark = against_short(entry.get("against_random"), measure)[-1:]
    return f"{measure.show(entry['mean'])} {mark}".rstrip()


if __name__ == "__main__":
    main(sys.argv[1:])
