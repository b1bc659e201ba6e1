"""Record what a finished demo measured: losses and accuracies by arm, composition, seconds by stage.

siftune demo --out siftune-demo && python benchmarks/demo.py siftune-demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from record import write_result
from siftune.selection.selection import Selection


def main() -> None:
    run = Path(sys.argv[1])
    arms = json.loads((run / "proof" / "demo.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    values = {
        "arms": [{"name": arm["name"], "n_rows": arm["n_rows"], **arm["summary"]} for arm in arms],
        "sources": Selection.open(run / "selections" / "malicious-strings").summary["sources"],
        "stages": [
            {k: v for k, v in e.items() if k != "settings"} for e in log if e["event"] == "stage done"
        ],
    }
    print(write_result("demo", values))


if __name__ == "__main__":
    main()
