"""`make faults`: every fault, as long as it takes; writes benchmarks/results/reliability.json, from which docs/reliability.md is made.

python -m disturbing WORK [--seed 0] [--minutes M] [--only TEXT]

What is tried is kept in WORK/tried.jsonl, so the same command goes on where it was stopped. Exit code 1 if a try was not good.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS.parent / "benchmarks")]


def main() -> int:
    from disturbing.cases import cases
    from disturbing.forks import Forks
    from disturbing.scene import Outcome, Scene
    from disturbing.summary import write_summary

    asked = _asked()
    asked.work.mkdir(parents=True, exist_ok=True)
    tried = asked.work / "tried.jsonl"
    known = {line["name"] for line in _lines(tried)}
    end = time.monotonic() + 60 * asked.minutes
    with Forks(asked.work / "logs") as forks:
        scene = Scene(asked.work, forks)
        for name, attempt in cases(scene, asked.seed):
            if name in known or asked.only not in name:
                continue
            if time.monotonic() > end:
                break
            begun = time.monotonic()
            try:
                found = attempt()
            except AssertionError as error:  # a hang, or an undisturbed command that failed
                found = Outcome(name.partition(",")[0], name, True, False, False, -1, "", str(error)[-600:])
            seconds = round(time.monotonic() - begun, 1)
            line: dict[str, Any] = {"name": name, "seconds": seconds}
            line |= {"skipped": True} if found is None else {"good": found.good, **found._asdict()}
            with tried.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            verdict = (
                "can't be tried here" if found is None else "good" if found.good else f"NOT GOOD {found.note}"
            )
            print(f"{seconds:6.1f} s  {name}: {verdict}", flush=True)
    lines = _lines(tried)
    print(write_summary(lines, asked.seed))
    return int(any(not line.get("good", True) for line in lines))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Put faults into runs on a tiny model and say what is left of them."
    )
    parser.add_argument(
        "work", type=Path, help="a folder for runs and what was tried; the command goes on where it was"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and bits that are drawn")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so many")
    parser.add_argument("--only", default="", help="tries whose name holds this text")
    return parser.parse_args()


def _lines(file: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    )


if __name__ == "__main__":
    sys.exit(main())
