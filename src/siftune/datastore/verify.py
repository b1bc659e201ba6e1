"""Is what a run keeps still what was written?

Every shard of pool, datastores and influence, the index, and every file of targets' features and vectors: there, of its length, of
its SHA-256; the same of checkpoints, rows of targets and selections; the adapter and Adam's moments that a datastore says it was
made with: still those; manifests, plan and the like: still as they were sealed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from siftune.datastore.pool import Pool
from siftune.datastore.side_car import checksums
from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, sha256_of


class Fault(NamedTuple):
    """A file that is damaged or missing, and the rows (`start` up to but not including `stop`) of pool or target that rest on it."""

    file: Path
    start: int
    stop: int
    what: str


class Verified(NamedTuple):
    """What was found. Files are counted with missing ones; `without_sum` were written by a siftune that kept no checksum of them."""

    n_files: int
    n_bytes: int
    faults: list[Fault]
    without_sum: list[Path]


def verify(run: Path) -> Verified:
    """Read everything that a run keeps by shards. Raises SiftuneError where it has no pool."""
    plan = Pool(run / "pool").plan
    faults, without_sum, n_files, n_bytes = list[Fault](), list[Path](), 0, 0
    for folder in _folders(run):
        if folder.parent.parent == run / "datastore":
            found = [Fault(file, 0, plan.n_rows, what) for file, what in _faults_of_origin(run, folder)]
            faults += found
        for shard in plan.shards:
            file = folder / f"{shard.name}.{'arrow' if folder == run / 'pool' else 'safetensors'}"
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.suffix == ".arrow" and file.exists() and not file.with_suffix(".json").exists():
                without_sum.append(file)
            elif what := _fault(file, shard.digest):
                faults.append(Fault(file, shard.start, shard.stop, what))
    for about in sorted(found for pattern in _LISTING for found in run.glob(pattern)):
        listed, found = _listed(about)
        n_files += len(listed)
        n_bytes += sum(file.stat().st_size for file in listed if file.exists())
        faults += [Fault(file, 0, plan.n_rows, what) for file, what in found]
    for file, what in _faults_of_warmup(run):
        faults.append(Fault(file, 0, plan.n_rows, what))
    index = run / "pool" / "index.parquet"
    n_files += 1
    if index.exists() and not index.with_suffix(".json").exists():
        without_sum.append(index)
    elif what := _fault(index, None):
        faults.append(Fault(index, 0, plan.n_rows, what))
    for folder in sorted(path for path in run.glob("targets/*") if path.is_dir()):
        try:
            target = read_sealed(folder / "target.json") if (folder / "target.json").exists() else None
        except SiftuneError:
            continue  # named above
        if target is None:
            faults.append(Fault(folder / "target.json", 0, 0, "is missing"))
            continue
        n_rows = len(target["subtask_V"]) if isinstance(target.get("subtask_V"), list) else 0
        kept = [*folder.glob("features/*.*"), *folder.glob("vectors/*.*")]  # numbers and side-cars
        for file in sorted({found.with_suffix(".safetensors") for found in kept}):
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.exists() and not file.with_suffix(".json").exists() and "sha256" not in target:
                without_sum.append(file)
            elif what := _fault(file, str(target.get("digest"))):
                faults.append(Fault(file, 0, n_rows, what))
    return Verified(n_files, n_bytes, faults, without_sum)


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
        made_with = read_sealed(store / "manifest.json").get("checkpoint") or {}
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


_LISTING = ("checkpoints/*/checkpoint.json", "targets/*/target.json", "selections/*/selection.json")
"""Files that name others of their folder with their SHA-256."""


def _listed(about: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files that a file of _LISTING names, and what is wrong with it or them."""
    try:
        sha256: dict[str, str] = read_sealed(about).get("sha256", {})
    except SiftuneError:
        return [], [(about, "is damaged")]
    faults: list[tuple[Path, str]] = []
    for name, was in sha256.items():
        if not (about.parent / name).exists():
            faults.append((about.parent / name, "is missing"))
        elif sha256_of(about.parent / name) != was:
            faults.append((about.parent / name, "is damaged: its SHA-256 is not that of what was written"))
    return [about.parent / name for name in sha256], faults


def _faults_of_warmup(run: Path) -> Iterator[tuple[Path, str]]:
    """What is wrong with what lies beside the checkpoints."""
    folder = run / "checkpoints"
    for numbered in sorted(path for path in folder.glob("[0-9]*") if path.is_dir()):
        if not (numbered / "checkpoint.json").exists():
            yield numbered / "checkpoint.json", "is missing"
    for file in (folder / "manifest.json", folder / "warmup.json"):
        adopted = file.name == "warmup.json" and not _warmed_up(folder)
        if not file.exists():
            if not adopted and (folder / "1").exists():
                yield file, "is missing"
            continue
        try:
            read_sealed(file)
        except SiftuneError:
            yield file, "is damaged"


def _warmed_up(checkpoints: Path) -> bool:
    try:
        return read_sealed(checkpoints / "1" / "checkpoint.json")["origin"].get("kind") == "warm-up"
    except (SiftuneError, OSError, KeyError):
        return False


def _fault(file: Path, made_for: str | None) -> str | None:
    """What is wrong with a file that has a side-car, made for the shard or target of a digest (None: any), or None."""
    if not file.exists():
        return "is missing"
    if not file.with_suffix(".json").exists():
        return "has no side-car: it was not written to its end"
    try:
        notes = read_sealed(file.with_suffix(".json"))
        digest, length, sha256 = notes["digest"], notes["bytes"], notes["sha256"]
    except (SiftuneError, KeyError, TypeError):
        return "has a damaged side-car"
    if made_for not in (None, digest):
        return "is of another pool or target"
    if length != file.stat().st_size:
        return f"is damaged: it has {file.stat().st_size} bytes, {length} were written"
    if checksums(file, with_sha256=True)[1] != sha256:
        return "is damaged: its SHA-256 is not that of what was written"
    return None
