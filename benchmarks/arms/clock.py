"""CPU seconds by phase and peak memory of one process: what every arm measures itself with. Standard library alone, since the
peers' environment has no siftune.

CPU seconds are user + system of the process and of its finished children; the first phase counts from the start of the
interpreter. The peak of memory is that of the resident set (Linux), counted anew once everything is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

START, LOAD, FIRST, GRADIENTS = "start-up", "load", "first batch", "gradients"
"""The phases of an arm. FIRST computes a batch aside, so that what is made once (maps, buffers) is not in GRADIENTS."""


def job() -> dict[str, Any]:
    """What the driver asks of this process: the JSON file named first on the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


class Clock:
    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self._seen = 0.0

    def done(self, phase: str) -> None:
        """The phase that ran since the last call, or since the process began, is over."""
        now = sum(os.times()[:4])
        self.cpu[phase] = round(now - self._seen, 3)
        self._seen = now
        if phase == LOAD:
            self.loaded_mib = _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here

    def passes(self, step: Callable[[Any], float], batches: list[Any]) -> float:
        """Loading is over: time `step` on the last batch aside, then on all of them; the sum of what it gave."""
        self.done(LOAD)
        step(batches[-1])
        self.done(FIRST)
        total = sum(step(batch) for batch in batches)
        self.done(GRADIENTS)
        return total

    def write(
        self, *, rows: int, mean_loss: float, dtype: str, packages: tuple[str, ...], **more: Any
    ) -> None:
        """Write the arm's result into the file named second on the command line.

        rows:      examples that the phase GRADIENTS went through
        mean_loss: over these; arms that disagree did not compute the same thing
        """
        found = {
            "cpu_seconds": self.cpu,
            "rows": rows,
            "mean_loss": round(mean_loss, 4),
            "dtype": dtype,
            "memory_mib": {"loaded": self.loaded_mib, "peak": _memory("VmHWM")},
            "versions": {name: version(name) for name in packages},
            **more,
        }
        aside = Path(sys.argv[2] + ".part")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.rename(sys.argv[2])


def _memory(field: str) -> float:
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"/proc/self/status has no {field}")
