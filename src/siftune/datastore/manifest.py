"""A store knows what made it, and refuses to be mixed or compared with anything else."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, write_sealed

_DIGEST = re.compile("[0-9a-f]{32,64}")
PACKAGES = ("siftune", "torch", "transformers", "peft", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {package: version(package) for package in PACKAGES}


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest; SiftuneError where it is damaged."""
    return read_sealed(
        path, todo=f"Remove the folder {path.parent} and run the same 'siftune run' again: it is made anew"
    )


def check_no_shards(folder: Path) -> None:
    """Shards without a manifest are of nobody knows what: SiftuneError."""
    if any(file.is_file() for file in folder.glob("shard-*.safetensors")):
        raise SiftuneError(
            "is missing, so nothing says what the shards beside it were made with",
            where=str(folder / "manifest.json"),
            todo=f"Remove the folder {folder} and run the same 'siftune run' again: it is made anew",
        )


def claim(path: Path, made_with: dict[str, Any], what: str, made_by: dict[str, str]) -> dict[str, str]:
    """Write a manifest, or check that the one that exists says the same.

    Raises SiftuneError naming the first setting that differs, what it was and what it is now. Package versions (`made_by`)
    change rounding only, so other ones are not refused: those that differ are returned, `{package: "old, now new"}`.
    """
    if not path.exists():
        check_no_shards(path.parent)
        write_sealed(path, {**made_with, "versions": made_by})
        return {}
    found = read_manifest(path)
    versions_then = found.pop("versions", {})
    if not isinstance(versions_then, dict):
        versions_then = {}
    for key in [*made_with, *(key for key in found if key not in made_with)]:
        was, now = found.get(key), made_with.get(key)
        if was != now:
            key, was, now = _difference(key, was, now)
            raise SiftuneError(
                f"{what}, made with {key} {_in_words(was)}, can't go on with {_in_words(now)}",
                where=str(path),
                todo=f"Bring {key} back to what it was, or start a new run with another --out: the two can't be mixed",
            )
    return {
        package: f"{versions_then.get(package)}, now {now}"
        for package, now in made_by.items()
        if versions_then.get(package) != now
    }


def _difference(key: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """What differs, by the name that a sentence gives it; of a mapping (the checkpoint) the first part that does."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return key, was, now
    part = next(part for part in [*now, *was] if was.get(part) != now.get(part))
    return f"the {key}'s {part}", was.get(part), now.get(part)


def _in_words(value: Any) -> str:
    """A value as a sentence has it; digests by their first digits."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    text = ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)
    return f"{text[:8]}…" if _DIGEST.fullmatch(text) else text
