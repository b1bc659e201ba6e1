"""Is what a run keeps still what was written?

Every shard of pool, datastores and influence, and every file of targets' features and vectors: there, of its length, of its SHA-256;
the adapter and Adam's moments that a datastore says it was made with: still those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.side_car import checksums
from siftune.datastore.verify_sealed import sealed_faults
from siftune.records.errors import SiftuneError
from siftune.records.files import read_object, read_sealed, sha256_of


class Fault(NamedTuple):
    """A file that is damaged or missing, and the rows (`start` up to but not including `stop`) of pool or target that rest on it."""

    file: Path
    start: int
    stop: int
    what: str


class Verified(NamedTuple):
    """What was found. Files are counted with missing ones; `without_sum` were written by a siftune that kept no checksum of them.

    not_made: folders of vectors that lack all shards from some row on, as after an append: a choice by their method makes them
    """

    n_files: int
    n_bytes: int
    faults: list[Fault]
    without_sum: list[Path]
    not_made: list[Fault]


def verify(run: Path) -> Verified:
    """Read everything that a run keeps by shards. Raises SiftuneError where it has no pool."""
    plan = Pool(run / "pool").plan
    without_sum, not_made, n_files, n_bytes = list[Path](), list[Fault](), 0, 0
    faults = [Fault(file, 0, plan.n_rows, what) for file, what in sealed_faults(run)]
    for folder in _folders(run):
        if folder.parent.parent == run / "datastore":
            found = [Fault(file, 0, plan.n_rows, what) for file, what in _faults_of_origin(run, folder)]
            faults += [fault for fault in found if fault.file not in {of.file for of in faults}]
        made = _made(folder, plan)
        if made < len(plan.shards):
            not_made.append(Fault(folder, plan.shards[made].start, plan.n_rows, "is not made"))
        for shard in plan.shards[:made]:
            file = folder / f"{shard.name}.{'arrow' if folder == run / 'pool' else 'safetensors'}"
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.suffix == ".arrow" and file.exists() and not any(folder.glob("shard-*.json")):
                without_sum.append(file)
            elif what := _fault(file, shard.digest):
                faults.append(Fault(file, shard.start, shard.stop, what))
    for folder in sorted(about.parent for about in run.glob("targets/*/target.json")):
        if folder / "target.json" in {of.file for of in faults}:
            continue
        target = read_object(folder / "target.json")
        n_rows = len(target["subtask_V"]) if isinstance(target.get("subtask_V"), list) else 0
        kept = [*folder.glob("features/*.*"), *folder.glob("vectors/*.*")]  # numbers and side-cars
        for file in sorted({found.with_suffix(".safetensors") for found in kept}):
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.exists() and not file.with_suffix(".json").exists() and "sha256" not in target:
                without_sum.append(file)
            elif what := _fault(file, str(target.get("digest"))):
                faults.append(Fault(file, 0, n_rows, what))
    return Verified(n_files, n_bytes, faults, without_sum, not_made)


def _made(folder: Path, plan: ShardPlan) -> int:
    """Up to which shard there should be something: all of them, but for vectors, which wait for a choice by their method."""
    n = len(plan.shards)
    if folder.name == "0" and folder.parent.parent.name == "datastore":
        while n and not any(
            (folder / f"{plan.shards[n - 1].name}.{end}").exists() for end in ("json", "safetensors")
        ):
            n -= 1
    return n


def _folders(run: Path) -> Iterator[Path]:
    """Where shards of the plan are."""
    yield run / "pool"
    for pattern in ("datastore/*/*", "targets/*/influence/*"):
        yield from sorted(folder for folder in run.glob(pattern) if folder.is_dir())


def _faults_of_origin(run: Path, store: Path) -> Iterator[tuple[Path, str]]:
    """What is wrong with a store's manifest, and with the checkpoint that it names."""
    if not (store / "manifest.json").exists():
        yield store / "manifest.json", "is missing"
        return
    try:
        made_with = read_object(store / "manifest.json").get("checkpoint") or {}
        known = {key: str(made_with[key]) for key in ("adapter", "adam") if key in made_with}
    except (SiftuneError, TypeError):
        yield store / "manifest.json", "is damaged"
        return
    for key, name in (("adapter", "adapter_model.safetensors"), ("adam", "adam_state.safetensors")):
        file = run / "checkpoints" / store.name / name
        if key in known and not file.exists():
            yield file, "is missing"
        elif key in known and sha256_of(file)[:32] != known[key]:
            yield file, "is not what this datastore was made with"


def _fault(file: Path, made_for: str) -> str | None:
    """What is wrong with a file that has a side-car, made for the shard or target of a digest, or None."""
    if not file.exists():
        return "is missing"
    if not file.with_suffix(".json").exists():
        return "has no side-car: it was not written to its end"
    try:
        notes = read_sealed(file.with_suffix(".json"))
        digest, length, sha256 = notes["digest"], notes["bytes"], notes["sha256"]
    except (SiftuneError, KeyError, TypeError):
        return "has a damaged side-car"
    if digest != made_for:
        return "is of another pool or target"
    if length != file.stat().st_size:
        return f"is damaged: it has {file.stat().st_size} bytes, {length} were written"
    if checksums(file, with_sha256=True)[1] != sha256:
        return "is damaged: its SHA-256 is not that of what was written"
    return None
