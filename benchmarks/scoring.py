"""Asking a stored pool that is larger than memory likes: time and memory against the number of rows, from the disk and from memory.

    python benchmarks/scoring.py --work FOLDER

One int8 store of random unit features is written below FOLDER (4 GB at 500,000 rows) and asked about 100 target rows, its first parts too. *Cold*: its
pages are dropped from memory before (what the disk or its host keeps by itself stays). *Warm*: it has just been read. What 10 million rows take is stated
from the largest store and one thread: its CPU seconds warm, and its bytes over the rate at which files are read cold when nothing is computed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from clock import peak_mib_over, seconds_of
from query import SHARD_ROWS, made_store, made_target, read_whole
from record import write_result
from siftune.datastore.features_writer import build_influence
from siftune.datastore.plan import ShardPlan
from siftune.datastore.shards import shard_file
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target
from siftune.records.errors import SiftuneError

FULL = 10_000_000
"""Rows of the pool that is spoken of."""
SPARE = 2.0
"""Free space over the size of the store, before it is written."""


class Asked(NamedTuple):
    """Rows asked about, threads, seconds (wall and CPU) and the peak of memory over what was held before."""

    rows: int
    threads: int
    cold: dict[str, float]
    warm: dict[str, float]
    peak_mib: float


def asked(store: Datastore, target: Target, threads: int, rounds: int) -> Asked:
    """Ask the store, `rounds` times cold and warm."""
    torch.set_num_threads(threads)

    def ask() -> None:
        shutil.rmtree(target.path / "influence", ignore_errors=True)
        build_influence(target, 1, store)

    cold: list[dict[str, float]] = []
    peaks = []
    for _ in range(rounds):
        drop(store)
        peaks.append(peak_mib_over(lambda: cold.append(seconds_of({"": ask}, 1)[""])))
    warm = seconds_of({"": ask}, rounds)[""]
    of_cold = {clock: median(each[clock] for each in cold) for clock in ("cpu", "wall")}
    return Asked(store.plan.n_rows, threads, of_cold, warm, max(peaks))


def drop(store: Datastore) -> None:
    """Drop the store's files from the system's memory."""
    os.sync()
    for shard in store.plan.shards:
        descriptor = os.open(shard_file(store.path, shard), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_seconds(store: Datastore, rounds: int) -> float:
    """Wall seconds of reading the store's files cold, nothing computed."""

    def read() -> None:
        for shard in store.plan.shards:
            read_whole(shard_file(store.path, shard))

    def once(work: Callable[[], None]) -> float:
        drop(store)
        return seconds_of({"": work}, 1)[""]["wall"]

    return median(once(read) for _ in range(rounds))


def part(store: Datastore, rows: int) -> Datastore:
    """The first `rows` of a store."""
    shards = tuple(shard for shard in store.plan.shards if shard.stop <= rows)
    return Datastore(store.path, ShardPlan(shards, 1, "", ()))


def extrapolated(found: Asked, store_bytes: float, disk_rate: float) -> dict[str, float]:
    """What FULL rows take, from a smaller store: everything is linear in rows. disk_rate: bytes a second"""
    times = FULL / found.rows
    return {
        "rows": FULL,
        "gib": round(store_bytes * times / 2**30, 1),
        "minutes_computing": round(found.warm["cpu"] * times / 60, 1),
        "minutes_reading": round(store_bytes * times / disk_rate / 60, 1),
        "minutes_cold_as_measured": round(found.cold["wall"] * times / 60, 1),
        "disk_bound_below_mb_per_second": round(store_bytes / found.warm["cpu"] / 1e6),
    }


def main() -> None:
    """Measure the parts asked for, with each number of threads."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000, 500_000])
    arguments.add_argument("--features", type=int, default=8192)
    arguments.add_argument("--target-rows", type=int, default=100)
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--work", type=Path, required=True)
    given = arguments.parse_args()
    needed, free = SPARE * max(given.rows) * given.features, shutil.disk_usage(given.work).free
    if free < needed:
        raise SiftuneError(
            f"{free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are wanted",
            where=str(given.work),
            todo="Give another folder as --work, or fewer --rows",
        )
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        whole = made_store(Path(folder) / "store", max(given.rows), given.features, "int8")
        target = made_target(Path(folder) / "target", given.target_rows, given.features)
        store_bytes = sum(shard_file(whole.path, shard).stat().st_size for shard in whole.plan.shards)
        asked(part(whole, SHARD_ROWS), target, 1, 1)  # what is loaded at first use is loaded
        found = []
        for rows in sorted(given.rows):
            for threads in given.threads:
                found.append(asked(part(whole, rows + SHARD_ROWS - 1), target, threads, given.rounds))
                print(found[-1], flush=True)
        disk_rate = store_bytes / read_seconds(whole, given.rounds)
    alone = max((each for each in found if each.threads == min(given.threads)), key=lambda each: each.rows)
    about = {name: getattr(given, name) for name in ("features", "target_rows", "rounds")}
    values = {
        **about,
        "store_dtype": "int8",
        "shard_rows": SHARD_ROWS,
        "gib": round(store_bytes / 2**30, 2),
        "disk_mb_per_second": round(disk_rate / 1e6),
        "asked": [each._asdict() for each in found],
        "extrapolated": extrapolated(alone, store_bytes, disk_rate),
    }
    print(write_result("scoring", values))


if __name__ == "__main__":
    main()
