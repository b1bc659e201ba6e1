"""Write a benchmark's result as versioned JSON: what was measured, when, at which commit, on what."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, values: dict[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path."""
    from siftune.datastore.manifest import versions

    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "../src"], cwd=here, capture_output=True, text=True, check=True
    )
    head = {
        "benchmark": name,
        "command": " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_path, sys.argv[1:])]
        ),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "machine": {"cpu": _cpu(), "python": platform.python_version()},
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**head, **values}, indent=2) + "\n", encoding="utf-8")
    return path


def _without_path(argument: str) -> str:
    """A path as its last part: where it lies on the machine that measured says nothing."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()
