"""Is what a run keeps by shards still what was written?

Every shard of pool, datastores and influence, and every file of targets' features and vectors: there, of its length, of its SHA-256;
targets' rows: still of their digest; what a datastore says that it was made with (adapter, Adam's moments, model, encoding): still so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.side_car import checksums
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import digest_of, read_json, sha256_of


class Fault(NamedTuple):
    """A file that is damaged or missing, and the rows (`start` up to but not including `stop`) of pool or target that rest on it;
    0 and 0: all that there are."""

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
    """Read everything that a run keeps by shards, and its targets. Raises SiftuneError where it has no pool, or its plan is damaged."""
    plan = Pool(run / "pool").plan
    faults, without_sum, n_files, n_bytes = list[Fault](), list[Path](), 0, 0
    for folder in _folders(run):
        if folder.parent.parent == run / "datastore":
            faults += [
                Fault(file, 0, plan.n_rows, what) for file, what in _faults_of_origin(run, folder, plan)
            ]
        for shard in plan.shards:
            file = folder / f"{shard.name}.{'arrow' if folder == run / 'pool' else 'safetensors'}"
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.suffix == ".arrow" and file.exists() and not file.with_suffix(".json").exists():
                without_sum.append(file)
            elif what := _fault(file, shard.digest):
                faults.append(Fault(file, shard.start, shard.stop, what))
    for folder in sorted(folder for folder in run.glob("targets/*") if folder.is_dir()):
        target, found = _target(folder)
        faults += found
        if target is None:
            continue
        kept = [*folder.glob("features/*.*"), *folder.glob("vectors/*.*")]  # numbers and side-cars
        for file in sorted({found.with_suffix(".safetensors") for found in kept}):
            n_files += 1
            n_bytes += file.stat().st_size if file.exists() else 0
            if file.exists() and not file.with_suffix(".json").exists():
                without_sum.append(file)
            elif what := _fault(file, target["digest"]):
                faults.append(Fault(file, 0, len(target["subtask_V"]), what))
    return Verified(n_files, n_bytes, faults, without_sum)


def _folders(run: Path) -> Iterator[Path]:
    """Where shards of the plan are."""
    yield run / "pool"
    for pattern in ("datastore/*/*", "targets/*/influence/*"):
        yield from sorted(folder for folder in run.glob(pattern) if folder.is_dir())


def _faults_of_origin(run: Path, store: Path, plan: ShardPlan) -> Iterator[tuple[Path, str]]:
    """What is wrong with a store's manifest, and with the plan, model and checkpoint that it names."""
    file, base = store / "manifest.json", run / "checkpoints" / "manifest.json"
    if not file.exists():
        yield file, "is missing"
        return
    try:
        manifest = read_json(file)
        made_with = manifest.get("checkpoint") or {}
    except (SiftuneError, AttributeError):
        yield file, "is damaged"
        return
    try:
        model = read_json(base)["model"] if base.exists() else None
    except (SiftuneError, KeyError, TypeError):
        yield base, "is damaged"
        return
    if "model" in manifest and model is None:  # a sentence encoder's vectors name none
        yield base, "is missing"
        return
    made_on = {"model": model}
    if manifest.get("method") == "less":
        made_on |= {"encoder": plan.encoder, "batch_tokens": plan.batch_tokens}
    for key, now in made_on.items():
        if key in manifest and manifest[key] != now:
            yield file, f"is of another {key.replace('_', ' ')} than this run"
    for key, name in (("adapter", "adapter_model.safetensors"), ("adam", "adam_state.safetensors")):
        weights = run / "checkpoints" / store.name / name
        if key in made_with and not weights.exists():
            yield weights, "is missing"
        elif key in made_with and sha256_of(weights)[:32] != made_with[key]:
            yield weights, "is not what this datastore was made with"


def _target(folder: Path) -> tuple[dict[str, Any] | None, list[Fault]]:
    """What a target's `target.json` says, None where it can't be used, and what is wrong with it and with its rows."""
    about, rows = folder / "target.json", folder / "rows.jsonl"
    if not about.exists():
        return None, [Fault(about, 0, 0, "is missing")]
    try:
        target = read_json(about)
        digest, n_rows = target["digest"], len(target["subtask_V"])
    except (SiftuneError, KeyError, TypeError):
        return None, [Fault(about, 0, 0, "is damaged")]
    if not rows.exists():
        return target, [Fault(rows, 0, n_rows, "is missing")]
    try:
        kept = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
        examples = [Example(row["id"], "", row["messages"], "", tools=row["tools"]) for row in kept]
        found = [[example.fingerprint, row["subtask"]] for example, row in zip(examples, kept, strict=True)]
    except (ValueError, KeyError, TypeError):
        return target, [Fault(rows, 0, n_rows, "is damaged")]
    if found != [list(pair) for pair in zip(target["fingerprint_V"], target["subtask_V"], strict=False)]:
        return target, [Fault(rows, 0, n_rows, "has other rows than target.json says")]
    if digest_of(found)[:32] != digest:
        return target, [Fault(about, 0, n_rows, "is damaged: its digest is not that of its rows")]
    return target, []


def _fault(file: Path, made_for: str) -> str | None:
    """What is wrong with a file that has a side-car, made for the shard or target of a digest, or None."""
    if not file.exists():
        return "is missing"
    if not file.with_suffix(".json").exists():
        return "has no side-car: it was not written to its end"
    try:
        notes = read_json(file.with_suffix(".json"))
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
