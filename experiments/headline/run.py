"""The headline: 5 % of 2,000 rows by each method, trained and measured on four targets. Goes on where it was.

    python experiments/headline/run.py DATA WORK [SEEDS]

DATA holds pool_2k.jsonl and targets/; WORK takes the runs (a few GB). See README.md beside this.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, PROOF, TASKS, keep_results, script, siftune, test_files, warmed_up, with_directions

METHODS = "blend,less,rds+,random"
ONCE = "blend,embed,bm25,length,random"
"""Compared with one seed, which is taken to vary as random rows do."""


def main(data: Path, work: Path, seeds: str) -> None:
    """All stages; each looks first for what is there."""
    script("parts.py", str(data), str(work / "parts"))
    runs = with_directions(warmed_up(data, work), [1, 2, 3, 4], ["sgd", "adam"])
    script("kept.py", "restore", str(runs["sgd"]), "final", "headline")
    siftune(
        "compare", str(runs["sgd"]), *test_files(work, "final", TASKS), "--methods", ONCE, "--keep", "5%", "--seeds", "1", *PROOF,
    )  # fmt: skip
    keep_results(runs["sgd"], HERE / "headline" / "results", more="-once")
    for task in TASKS:  # the paper's choice: direction adam, rule top
        siftune("select", str(runs["adam"]), "--target", task, "--rule", "top", "--name", f"{task}-paper")
        paper = runs["adam"] / "selections" / f"{task}-paper" / "selected.jsonl"
        siftune(
            "compare", str(runs["sgd"]), *test_files(work, "final", (task,)), "--methods", METHODS, "--also", f"less-paper={paper}",
            "--keep", "5%", "--seeds", seeds, "--reading", "both", *PROOF,
        )  # fmt: skip
    script("kept.py", "keep", str(runs["sgd"]), "final", "headline")
    keep_results(runs["sgd"], HERE / "headline" / "results")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "3")
