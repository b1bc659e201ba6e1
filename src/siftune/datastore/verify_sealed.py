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
    "pool/shard-*.arrow": ("index.parquet", "index.json"),
    "checkpoints/[0-9]*/adam_state.safetensors": ("checkpoint.json", "../manifest.json"),
    "targets/*/rows.jsonl": ("target.json",),
    "selections/*/selected.jsonl": ("selection.json",),
}
"""Where a file of the first pattern is, those beside it are too."""


def sealed_faults(run: Path) -> Iterator[tuple[Path, str]]:
    """Every such file that is damaged or missing, and what is wrong with it."""
    for pattern, names in NEEDED.items():
        folders = {file.parent for file in run.glob(pattern)}
        files = {(folder / name).resolve() for folder in folders for name in names}
        yield from ((file, "is missing") for file in sorted(files) if not file.exists())
    for file in sorted(file for pattern in SEALED for file in run.glob(pattern)):
        try:
            found = read_sealed(file)
        except SiftuneError:
            yield file, "is damaged"
            continue
        if found.get("origin", {}).get("kind") == "warm-up":
            rows = file.parents[1] / "warmup.json"
            if found["number"] == 1 and not rows.exists():
                yield rows, "is missing"
        for name, sha256 in _named(file, found).items():
            other = file.parent / name
            if not other.exists():
                yield other, "is missing"
            elif sha256_of(other) != sha256:
                yield other, "is damaged: its SHA-256 is not that of what was written"


def _named(file: Path, found: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of files beside it, by name; the index's side-car has that of the index."""
    sha256 = found.get("sha256", {})
    return {file.with_suffix(".parquet").name: sha256} if isinstance(sha256, str) else sha256
