"""`siftune datastore verify`: is every file of a run that matters still what was written?

Shards, targets and what stores say of their origin (`datastore.verify`), index and quarantine against the pool, selections
against pool and scores, recipe and checkpoints against each other; all other JSON files can be read. Not looked at: `log.jsonl`
and the pages and plots that are made from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.verify import Fault, Verified, verify
from siftune.datastore.verify_index import index_faults
from siftune.pipeline.rundir import read_made_with, read_run_recipe
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json, sha256_of
from siftune.selection.verify import selection_faults

LOOKED_AT = (
    "recipe.yaml",
    "pool/plan.json",
    "pool/index.parquet",
    "quarantine.jsonl",
    "checkpoints/*.json",
    "checkpoints/[0-9]*/*",
    "datastore/*/*/manifest.json",
    "targets/*/*.json*",
    "selections/*/*",
    "proof/**/*.json",
    "report.json",
)
"""Files beside those with side-cars."""


def verify_run(run: Path) -> Verified:
    """Look at everything. Raises SiftuneError where there is no pool."""
    plan_file = run / "pool" / "plan.json"
    if plan_file.exists():
        try:
            ShardPlan.read(plan_file)
        except SiftuneError as error:  # nothing else can be looked at without it
            return Verified(1, plan_file.stat().st_size, [Fault(plan_file, 0, 0, error.what)], [])
    found = verify(run)
    faults = [*found.faults, *_without_sums(run)]
    faults = list({fault.file: fault for fault in reversed(faults)}.values())[::-1]  # the first of a file
    files = {file for pattern in LOOKED_AT for file in run.glob(pattern) if _is_ours(run, file)}
    n_missing = sum(not fault.file.exists() for fault in faults if fault not in found.faults)
    n_bytes = found.n_bytes + sum(file.stat().st_size for file in files)
    return Verified(found.n_files + len(files) + n_missing, n_bytes, faults, found.without_sum)


def _is_ours(run: Path, file: Path) -> bool:
    """Not being written just now, nor left aside by who was killed."""
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(run).parts)


def _without_sums(run: Path) -> Iterator[Fault]:
    """Faults of files that have no checksums of their own."""
    pool = Pool(run / "pool")
    yield from _recipe_faults(run)
    if (run / "recipe.yaml").exists() or (run / "pool" / "index.parquet").exists():  # else not yet made
        yield from index_faults(run, pool)
    for folder in sorted(folder for folder in run.glob("selections/*") if folder.is_dir()):
        yield from selection_faults(folder, pool)
    for file in sorted(file for pattern in LOOKED_AT for file in run.glob(pattern) if _is_ours(run, file)):
        if file.suffix == ".json":
            try:
                read_json(file)
            except SiftuneError:
                yield Fault(file, 0, 0, "is damaged: it is not JSON")


def _recipe_faults(run: Path) -> Iterator[Fault]:
    file = run / "recipe.yaml"
    if not file.exists():
        if any(run.glob("datastore/*/*")) or any(run.glob("selections/*")):
            yield Fault(file, 0, 0, "is missing")
        return
    try:
        read_run_recipe(run)
        made_with = read_made_with(run)
        recorded = [dict(one) for one in made_with.get("checkpoints", [])]
    except (SiftuneError, TypeError, ValueError, AttributeError) as error:
        what = error.what if isinstance(error, SiftuneError) else "its made_with can't be read"
        yield Fault(file, 0, 0, f"is damaged: {what}")
        return
    whole = all({"number", "adapter", "adam", "step"} <= one.keys() for one in recorded)
    if "versions" not in made_with or ("checkpoints" not in made_with and any(run.glob("datastore/less/*"))):
        whole = False  # this part is written last
    if not whole:
        yield Fault(file, 0, 0, "is damaged: it doesn't say all that the run was made with")
        return
    weights = []
    for one in recorded:
        folder = run / "checkpoints" / str(one["number"])
        found = _checkpoint(folder, {**one, "of": len(recorded)})
        if isinstance(found, Fault):
            yield found
        else:
            weights.append(found["weight"])
            warmup = folder.parent / "warmup.json"
            if found["origin"]["kind"] == "warm-up" and not warmup.exists():
                yield Fault(warmup, 0, 0, "is missing")
        if not (run / "datastore" / "less" / folder.name / "manifest.json").exists():  # looked at there
            for key, name in (("adapter", "adapter_model.safetensors"), ("adam", "adam_state.safetensors")):
                if not (folder / name).exists():
                    yield Fault(folder / name, 0, 0, "is missing")
                elif sha256_of(folder / name)[:32] != one[key]:
                    yield Fault(folder / name, 0, 0, "is not what recipe.yaml says")
    if len(weights) == len(recorded) > 0 and not math.isclose(sum(weights), 1, abs_tol=1e-6):
        yield Fault(run / "checkpoints", 0, 0, f"has weights that add up to {sum(weights):.6g}, not to 1")


def _checkpoint(folder: Path, recorded: dict[str, Any]) -> dict[str, Any] | Fault:
    """A checkpoint's `checkpoint.json`, or what is wrong with it or its adapter's config."""
    for name in ("checkpoint.json", "adapter_config.json"):
        if not (folder / name).exists():
            return Fault(folder / name, 0, 0, "is missing")
    try:
        found = read_json(folder / "checkpoint.json")
        same = all(found[key] == recorded[key] for key in ("number", "of", "step"))
        found["weight"], _ = float(found["weight"]), found["origin"]["kind"]
    except (SiftuneError, KeyError, TypeError, ValueError):
        return Fault(folder / "checkpoint.json", 0, 0, "is damaged")
    return found if same else Fault(folder / "checkpoint.json", 0, 0, "is not what recipe.yaml says")
