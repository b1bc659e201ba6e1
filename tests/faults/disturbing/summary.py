"""What tries came to, counted by fault, as benchmarks/results/reliability.json."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from record import write_result  # benchmarks/, where the other figures are written


def write_summary(tried: list[dict[str, Any]], seed: int) -> Path:
    """Count and write; returns the file."""
    lines = [line for line in tried if not line.get("skipped")]
    faults = {fault: _of([line for line in lines if line["fault"] == fault]) for fault in _in_order(lines)}
    not_good = [
        {key: line[key] for key in ("fault", "case", "told", "identical", "lost", "where")}
        for line in lines
        if not line["good"]
    ]
    skipped = Counter(line["name"].partition(",")[0] for line in tried if line.get("skipped"))
    values = {
        "command": f"make faults ARGS=--seed={seed}",
        "seed": seed,
        "faults": faults,
        "not_good": not_good,
        "skipped": dict(skipped),
    }
    return write_result("reliability", values)


def _in_order(lines: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["fault"] for line in lines))


def _of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    came = [line for line in lines if line["happened"]]
    return {
        "tries": len(came),
        "told": sum(line["told"] for line in came),
        "identical": sum(line["identical"] for line in came),
        "lost_rows": sum(max(0, line["lost"]) for line in came),
        "where": dict(Counter(line["where"] for line in came if line["where"]).most_common()),
    }
