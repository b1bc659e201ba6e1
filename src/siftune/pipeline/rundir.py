"""The run directory: its recipe, its lock, and which settings may still change."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from siftune.records.errors import SiftuneError
from siftune.records.files import disk_error, read_object, write_text
from siftune.records.recipe import Recipe, make_recipe, read_recipe

CHOICE = (
    "keep",
    "drop_worst",
    "rule",
    "centre",
    "method",
    "encoder",
    "family",
    "clusters",
    "templates",
    "template_column",
    "near_duplicates",
    "per_source",
    "repeats",
    "name",
    "seed",
)
"""Settings of a choice. A run's recipe keeps those of its first; each selection records its own."""

FREE = {"target", "device", "workers", "no_text", *CHOICE} - {"seed"}
"""Settings that change nothing that is already made: choosing again, elsewhere, for something else."""

OPEN = (None, "auto", ["auto"], [], {})
"""Values that leave a setting to be decided: in a run that has decided, they ask for what is there."""


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with every local path made absolute, so that the run can be gone on with from anywhere.

    Without `model`, an adopted training says what its base was.
    """

    def whole(path: str | None) -> str | None:
        return (
            os.path.abspath(os.path.expanduser(path))
            if path and os.path.exists(os.path.expanduser(path))
            else path
        )

    changes: dict[str, Any] = {
        name: whole(getattr(recipe, name)) for name in ("model", "adapter", "adopt", "encoder")
    }
    if recipe.adopt and not recipe.model:
        changes["model"] = whole(_base_of(Path(recipe.adopt)))
    changes["target"] = {name: whole(source) for name, source in recipe.target.items()}
    changes["pool"] = [whole(source) for source in recipe.pool]
    return recipe.model_copy(
        update={name: now for name, now in changes.items() if now != getattr(recipe, name)}
    )


def _base_of(training: Path) -> str | None:
    """The base model that an adopted training names in its adapter_config.json."""
    for file in [
        training / "adapter_config.json",
        *sorted(training.glob("checkpoint-*/adapter_config.json")),
    ]:
        if file.exists():
            return read_object(file).get("base_model_name_or_path")
    return None


def merged(recorded: Recipe, asked: Recipe) -> Recipe:
    """The recipe of an existing run with what is asked for now.

    Only settings that were set explicitly count. Raises SiftuneError naming the first one that would mix two things in one run.
    """
    changes: dict[str, Any] = {}
    for name in sorted(asked.model_fields_set):
        now, was = getattr(asked, name), getattr(recorded, name)
        if now in OPEN or now == was:
            continue
        if name == "target":
            changes["target"] = {**was, **now}
        elif name == "pool" and was[: len(now)] == now:
            continue  # rows were appended since
        elif name in FREE:
            changes[name] = now
        else:
            raise SiftuneError(
                f"this run was made with {name} = {was!r}; now it is {now!r}",
                where=name,
                todo=f"Leave {name} as it was, or start a new run with another --out",
            )
    return recorded.with_settings(changes) if changes else recorded


def read_run_recipe(path: Path) -> Recipe:
    """The recipe of a run directory. SiftuneError where it is none."""
    file = path / "recipe.yaml"
    if not file.exists():
        raise SiftuneError(
            "is not a run directory (it holds no recipe.yaml)",
            where=str(path),
            todo="Check the path, or start with 'siftune run'",
        )
    return make_recipe(read_recipe(file), where=str(file))


def write_run_recipe(path: Path, recipe: Recipe, made_with: dict[str, Any]) -> None:
    """Write `recipe.yaml`: every setting, and under `made_with` what it was resolved on."""
    text = yaml.safe_dump(
        {**recipe.model_dump(), "made_with": made_with}, sort_keys=False, allow_unicode=True, width=110
    )
    write_text(path / "recipe.yaml", text)


def read_made_with(path: Path) -> dict[str, Any]:
    """What a run was resolved on so far; empty for a new one."""
    file = path / "recipe.yaml"
    return (
        dict(yaml.safe_load(file.read_text(encoding="utf-8")).get("made_with") or {}) if file.exists() else {}
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run directory for this process; SiftuneError where another one works in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except FileExistsError as error:
        raise SiftuneError("is a file, not a folder", where=str(path), todo="Choose another --out") from error
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SiftuneError(
                "another siftune is working in this run",
                where=str(path),
                todo="Wait until it has ended: one command works in a run at a time (a new run has another --out)",
            ) from error
        _remove_left_overs(path)
        yield
    finally:
        os.close(descriptor)


def _remove_left_overs(path: Path) -> None:
    """What writers that were killed left aside. Whoever holds the lock knows that they are dead, but for workers: a shard of theirs
    is being written while its claim counts.
    """
    from siftune.datastore.claims import held_by_another

    for left in list(path.rglob(".*.part")):
        shard = left.name[1:].partition(".")[0]
        if held_by_another(left.with_name(f"{shard}.claim")):
            continue
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    for pattern in ("*.claim", "*.trouble.json"):
        for left in path.glob(f"datastore/*/*/{pattern}"):
            shard = left.with_name(left.name.partition(".")[0])
            made = shard.with_suffix(".json").exists() and shard.with_suffix(".safetensors").exists()
            if made and not held_by_another(shard.with_suffix(".claim")):
                left.unlink(missing_ok=True)
