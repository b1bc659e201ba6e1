"""Deciding the defaults: direction, centring, rule, on the tuning parts of the tests. Goes on where it was.

    python experiments/defaults/run.py DATA WORK [SEEDS] [TASK …]

Shares WORK with the headline experiment: the same run, the same features. See README.md beside this.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, PROOF, keep_results, script, siftune, test_files, warmed_up, with_directions

OWN = "less,blend,rds+,less:rule=top,less:rule=round-robin,random"
OTHERS = {  # name of the arm: direction, settings of the choice
    "adam": ("adam", ()),
    "adam-top": ("adam", ("--rule", "top")),
    "adam-centred": ("adam", ("--centre",)),
    "adam-precond": ("adam-precond", ()),
}


def main(data: Path, work: Path, seeds: str, tasks: tuple[str, ...]) -> None:
    """All stages; each looks first for what is there."""
    script("parts.py", str(data), str(work / "parts"))
    runs = with_directions(warmed_up(data, work), [1, 2, 3, 4], ["sgd", "adam", "adam-precond"])
    script("kept.py", "restore", str(runs["sgd"]), "tuning", "defaults")
    for task in tasks:
        also = []
        for name, (direction, settings) in OTHERS.items():
            run = runs[direction]
            siftune("select", str(run), "--target", task, "--name", f"{task}-{name}", *settings)
            also += ["--also", f"{name}={run / 'selections' / f'{task}-{name}' / 'selected.jsonl'}"]
        siftune(
            "compare", str(runs["sgd"]), *test_files(work, "tuning", (task,)), "--methods", OWN, *also, "--keep", "5%",
            "--seeds", seeds, *PROOF,
        )  # fmt: skip
    script("kept.py", "keep", str(runs["sgd"]), "tuning", "defaults")
    keep_results(runs["sgd"], HERE / "defaults" / "results", tasks)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        *(sys.argv[3:4] or ["1"]),
        tuple(sys.argv[4:]) or ("bbh", "banking77"),
    )
