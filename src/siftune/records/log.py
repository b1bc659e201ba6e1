"""`RUN/log.jsonl`: an event a line, appended; what happened when, how long it took, what it needed."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siftune.records.secrets import without_secrets


class RunLog:
    """Appends events to a run's log. A line that a kill cut off harms nothing: readers skip it.

    seconds: what this process spent on each kind of stage (`datastore`, for all checkpoints)
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = {}

    def event(self, event: str, **details: Any) -> None:
        """Append one event; `details` must be JSON values. Hub tokens are taken out."""
        line = json.dumps(
            {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(without_secrets(line) + "\n")

    @contextmanager
    def stage(self, stage: str) -> Iterator[dict[str, Any]]:
        """Log a stage's begin and end with wall and CPU seconds and the process's peak memory (MiB).

        What the block puts into the yielded dict is logged with the end. A failed stage is logged as such.
        """
        self.event("stage began", stage=stage)
        wall, cpu, details = time.perf_counter(), time.process_time(), dict[str, Any]()
        outcome = "stage failed"
        try:
            yield details
            outcome = "stage done"
        except KeyboardInterrupt:
            outcome = "stage interrupted"
            raise
        finally:
            seconds, kind = time.perf_counter() - wall, stage.partition(" ")[0]
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
            self.event(
                outcome,
                stage=stage,
                seconds=round(seconds, 2),
                cpu_seconds=round(time.process_time() - cpu, 2),
                peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                **details,
            )


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; none where there is no log. Lines that a kill cut off, and others that are none, are skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def stage_seconds(path: Path) -> dict[str, float]:
    """Wall seconds of each kind of stage over all commands that worked in a run, in order of first appearance.

    What a killed process spent on the stage it was in isn't known and isn't counted.
    """
    total: dict[str, float] = {}
    for event in read_events(path):
        if isinstance(event.get("stage"), str) and isinstance(event.get("seconds"), (int, float)):
            kind = event["stage"].partition(" ")[0]
            total[kind] = round(total.get(kind, 0.0) + event["seconds"], 2)
    return total
