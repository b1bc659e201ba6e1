"""Is what a run keeps still what was written? Every shard of pool, datastores and influence: there, of its length, of its SHA-256."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from siftune.datastore.plan import Shard
from siftune.datastore.pool import Pool
from siftune.datastore.side_car import checksums
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json


class Fault(NamedTuple):
    """A file that is damaged or missing, and the pool rows (`start` up to but not including `stop`) that it holds."""

    file: Path
    start: int
    stop: int
    what: str


class Verified(NamedTuple):
    """What was found. Files are counted with missing ones; `without_sum` were written by a siftune that kept no checksum of the pool."""

    n_files: int
    n_bytes: int
    faults: list[Fault]
    without_sum: list[Path]


def verify(run: Path) -> Verified:
    """Read everything that a run keeps by shards. Raises SiftuneError where it has no pool."""
    plan = Pool(run / "pool").plan
    faults, without_sum, n_files, n_bytes = list[Fault](), list[Path](), 0, 0
    for folder in _folders(run):
        if folder.parent.parent == run / "datastore" and not (folder / "manifest.json").exists():
            faults.append(Fault(folder / "manifest.json", 0, plan.n_rows, "is missing"))
        for shard in plan.shards:
            file = folder / f"{shard.name}.{'arrow' if folder == run / 'pool' else 'safetensors'}"
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.suffix == ".arrow" and file.exists() and not file.with_suffix(".json").exists():
                without_sum.append(file)
            elif what := _fault(file, shard):
                faults.append(Fault(file, shard.start, shard.stop, what))
    return Verified(n_files, n_bytes, faults, without_sum)


def _folders(run: Path) -> Iterator[Path]:
    """Where shards of the plan are."""
    yield run / "pool"
    for pattern in ("datastore/*/*", "targets/*/influence/*"):
        yield from sorted(folder for folder in run.glob(pattern) if folder.is_dir())


def _fault(file: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, or None."""
    if not file.exists():
        return "is missing"
    if not file.with_suffix(".json").exists():
        return "has no side-car: it was not written to its end"
    try:
        notes = read_json(file.with_suffix(".json"))
        digest, length, sha256 = notes["digest"], notes["bytes"], notes["sha256"]
    except (SiftuneError, KeyError, TypeError):
        return "has a damaged side-car"
    if digest != shard.digest:
        return "is of another pool"
    if length != file.stat().st_size:
        return f"is damaged: it has {file.stat().st_size} bytes, {length} were written"
    if checksums(file, with_sha256=True)[1] != sha256:
        return "is damaged: its SHA-256 is not that of what was written"
    return None
