"""Section 10: what became of every row, how trained tokens were found, what each stage cost, what the run was made with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siftune.datastore.index import counts, duplicate_rows
from siftune.records.log import read_events
from siftune.reports.material import Material

REASONS = 12
FOLDERS = ("pool", "checkpoints", "datastore", "targets", "selections", "proof")


def integrity_section(material: Material, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, reasons, costs, disk and versions, as JSON values."""
    status, masks = counts(material.index, "status"), counts(material.index, "mask")
    reasons = Counter(_alike(reason) for reason in material.index["reason"].to_pylist() if reason)
    quarantined, truncated = status.get("quarantined", 0), status.get("truncated", 0)
    n = material.index.num_rows
    return {
        "rows": n,
        "status": status,
        "masks": masks,
        "duplicates": duplicate_rows(material.index),
        "reasons": [{"reason": reason, "rows": rows} for reason, rows in reasons.most_common(REASONS)],
        "more_reasons": max(0, len(reasons) - REASONS),
        "max_length": material.recipe["max_length"],
        "stages": stages_of(material.path / "log.jsonl"),
        "disk": {name: size for name in FOLDERS if (size := _bytes(material.path / name))},
        "versions": dict(made_with.get("versions", {})),
        "date": made_with.get("date"),
        "finding": f"{n - quarantined:,} of {n:,} rows could be used, {quarantined:,} are in quarantine, {truncated:,} were cut at max_length.",
    }


def stages_of(log: Path) -> list[dict[str, Any]]:
    """Per stage of the log, in order: seconds of all its tries, the highest memory, tries that did not end."""
    found: dict[str, dict[str, Any]] = {}
    for event in read_events(log):
        if not isinstance(event.get("stage"), str) or str(event["stage"]).startswith("proof "):
            continue
        stage = found.setdefault(
            event["stage"],
            {
                "stage": event["stage"],
                "seconds": 0.0,
                "cpu_seconds": 0.0,
                "peak_memory_mib": 0,
                "began": 0,
                "done": 0,
            },
        )
        if event.get("event") == "stage began":
            stage["began"] += 1
            continue
        costs = [event.get(name) for name in ("seconds", "cpu_seconds", "peak_memory_mib")]
        if not all(isinstance(cost, (int, float)) and math.isfinite(cost) for cost in costs):
            continue
        stage["done"] += event.get("event") == "stage done"
        stage["seconds"] = round(stage["seconds"] + event["seconds"], 2)
        stage["cpu_seconds"] = round(stage["cpu_seconds"] + event["cpu_seconds"], 2)
        stage["peak_memory_mib"] = max(stage["peak_memory_mib"], event["peak_memory_mib"])
    return list(found.values())


def _alike(reason: str) -> str:
    """A reason with what differs from row to row taken out, so that like reasons count as one."""
    reason = re.sub(r"""'[^']*'|"[^"]*\"""", "'…'", reason)
    return re.sub(r"\d[\d,.]*", "N", reason)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
