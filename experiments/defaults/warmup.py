"""Does a longer warm-up choose better? 512 rows in place of 128, gradients under the last of four checkpoints alone. Goes on where it was.

    python experiments/defaults/warmup.py DATA WORK

WORK/choices/TASK-ARM.jsonl as choices.py writes them, arms `less-4-ROWS` and `blend-4-ROWS` (likeness and words need no warm-up); and WORK/warmup.queue, which trains them on
the tuning parts of the tests: `python experiments/worker.py WORK/run-sgd WORK/warmup.queue`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from choices import Chooser, write_choice

from common import TASKS, script, warmed_up, with_directions
from siftune.methods.blend import blended_influence

LAST = 4


def main(data: Path, work: Path) -> None:
    """All stages; each looks first for what is there."""
    script("parts.py", str(data), str(work / "parts"))
    with_directions(warmed_up(data, work), [LAST], ["sgd"])
    with_directions(warmed_up(data, work, "run-long", "--warmup-fraction", "0.256"), [LAST], ["sgd"])
    short = Chooser(work, "sgd")
    queue = []
    for task in TASKS:
        others = [short.by(method, task) for method in ("rds+", "bm25")]
        for rows, chooser in ((128, short), (512, Chooser(work, "long-sgd"))):
            less_N_V = chooser.influence(task, LAST)
            for arm, influence_N_V in (("less", less_N_V), ("blend", blended_influence([less_N_V, *others]))):
                name = f"{arm}-{LAST}-{rows}"
                file = write_choice(work, task, name, chooser.choose(task, influence_N_V))
                queue.append(f"{name} 0 {file} tuning:{task}\n")
    (work / "warmup.queue").write_text("".join(queue), encoding="utf-8")
    # Lines that a worker took and didn't end: what was trained isn't trained again
    shutil.rmtree(work / "warmup.queue.claims", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
