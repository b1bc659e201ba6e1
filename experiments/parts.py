"""Fixed random parts of test files: one for deciding defaults, another for the final table. No row is in both.

    python experiments/parts.py DATA OUT

DATA/targets/TASK/test.jsonl -> OUT/{tuning,final}/TASK.jsonl. Rows of a test with subtasks are drawn evenly from each. The target's own rows are the part `target`:
what a choice was made for, whatever the test asks.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ROWS = {"gsm8k": (100, 150), "banking77": (100, 150), "bbh": (3, 5), "mmlu": (2, 3)}
"""Rows for tuning and for the final table; of each subtask for bbh and mmlu."""


def parts(data: Path, out: Path) -> None:
    """Write the parts."""
    for task, (n_tuning, n_final) in ROWS.items():
        rows = [json.loads(line) for line in (data / "targets" / task / "test.jsonl").open(encoding="utf-8")]
        by_subtask: dict[str, list[dict]] = {}
        for row in rows:
            by_subtask.setdefault(row.get("subtask", ""), []).append(row)
        drawn: dict[str, list[dict]] = {"tuning": [], "final": []}
        for subtask, group in sorted(by_subtask.items()):
            random.Random(f"{task} {subtask}").shuffle(group)
            drawn["tuning"] += group[:n_tuning]
            drawn["final"] += group[n_tuning : n_tuning + n_final]
        few = (data / "targets" / task / "fewshot.jsonl").read_text(encoding="utf-8")
        drawn["target"] = [json.loads(line) for line in few.split("\n") if line]
        for part, found in drawn.items():
            file = out / part / f"{task}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8"
            )


if __name__ == "__main__":
    parts(Path(sys.argv[1]), Path(sys.argv[2]))
