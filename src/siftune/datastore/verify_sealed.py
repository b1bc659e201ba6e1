"""Are the small files of a run still as they were sealed, and the files that they name by SHA-256 still what was written?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siftune.records.errors import SiftuneError
from siftune.records.files import read_sealed, sha256_of

SEALED = (
    "pool/index.json",
    "checkpoints/*.json",
    "checkpoints/[0-9]*/checkpoint.json",
    "datastore/*/*/manifest.json",
    "targets/*/target.json",
    "selections/*/selection.json",
)
NEEDED = {
    "checkpoints/[0-9]*/adam_state.safetensors": "checkpoint.json",
    "targets/*/rows.jsonl": "target.json",
    "selections/*/selected.jsonl": "selection.json",
}
"""Where something of the pattern is, a file of that name is beside it."""


def sealed_faults(run: Path) -> Iterator[tuple[Path, str]]:
    """Every such file that is damaged or missing, and what is wrong with it."""
    needed = {found.parent / name for pattern, name in NEEDED.items() for found in run.glob(pattern)}
    yield from ((file, "is missing") for file in sorted(needed) if not file.exists())
    for file in sorted(file for pattern in SEALED for file in run.glob(pattern)):
        try:
            found = read_sealed(file)
        except SiftuneError:
            yield file, "is damaged"
            continue
        named = _named(file, found)
        if named is None:
            yield file, "is damaged: it names files that are not beside it"
            continue
        if found.get("number") == 1:
            beside = ["manifest.json", *(["warmup.json"] if found["origin"].get("kind") == "warm-up" else [])]
            lacking = [file.parents[1] / name for name in beside if not (file.parents[1] / name).exists()]
            yield from ((other, "is missing") for other in lacking)
        for name, sha256 in named.items():
            other = file.parent / name
            if not other.exists():
                yield other, "is missing"
            elif sha256_of(other) != sha256:
                yield other, "is damaged: its SHA-256 is not that of what was written"


def _named(file: Path, found: dict[str, Any]) -> dict[str, str] | None:
    """SHA-256 of files beside it, by name; the index's side-car has that of the index. None where it names anything else."""
    sha256 = found.get("sha256", {})
    if isinstance(sha256, str):
        return {file.with_suffix(".parquet").name: sha256}
    beside = isinstance(sha256, dict) and all(Path(name).name == name for name in sha256)
    return sha256 if beside else None
