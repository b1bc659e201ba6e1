"""CPU and wall seconds of a piece of work, medians over rounds; the most memory that it held."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median


def seconds_of(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by name. Every round does each piece once, so that a busy minute hits all alike."""
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, piece in work.items():
            at_cpu, at_wall = time.process_time(), time.perf_counter()
            piece()
            cpu[name].append(time.process_time() - at_cpu)
            wall[name].append(time.perf_counter() - at_wall)
    return {name: {"cpu": round(median(cpu[name]), 4), "wall": round(median(wall[name]), 4)} for name in work}


def peak_mib_over(piece: Callable[[], object]) -> float:
    """MiB that this process held at most while doing `piece`, over what it held before. Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    piece()
    return round((_status("VmHWM") - before) / 1024, 1)


def held_mib() -> float:
    """MiB that this process holds now. Linux."""
    return round(_status("VmRSS") / 1024, 1)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
