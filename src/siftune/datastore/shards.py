"""A shard on disk: a safetensors file, and a side-car that says what it is and holds its checksum.

The side-car is written after the file, so a shard is done when both exist and match: the `digest` of the plan's shard and
the file's length; everything else is made again. Whoever reads a shard checks its `sha256`, so a flipped bit is found, not used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from siftune.datastore.plan import Shard
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json, sha256_of, write_json, written_whole


def shard_file(folder: Path, shard: Shard) -> Path:
    """Where a shard's tensors are; its side-car has the ending `.json`."""
    return folder / f"{shard.name}.safetensors"


def write_shard(folder: Path, shard: Shard, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Commit a shard: tensors first, then the side-car with `notes` (JSON values that rerunning would make again)."""
    file = shard_file(folder, shard)
    with written_whole(file) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    side_car = {
        "start": shard.start,
        "stop": shard.stop,
        "digest": shard.digest,
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        **notes,
    }
    write_json(file.with_suffix(".json"), side_car)


def shard_notes(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """The side-car of a shard that is done, or None where the shard has to be made."""
    file = shard_file(folder, shard)
    if not (file.exists() and file.with_suffix(".json").exists()):
        return None
    notes = read_json(file.with_suffix(".json"))
    done = notes.get("digest") == shard.digest and notes.get("bytes") == file.stat().st_size
    return notes if done else None


def read_shard(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """A shard's tensors. Raises SiftuneError where it is missing, broken or of another pool."""
    file = shard_file(folder, shard)
    notes = shard_notes(folder, shard)
    if notes is None:
        raise SiftuneError(
            "is missing or not of this pool",
            where=str(file),
            todo="Run the same 'siftune run' again: it is made anew",
        )
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != notes["sha256"]:
        raise SiftuneError(
            "is damaged: its bytes are not those that were written (SHA-256 differs)",
            where=str(file),
            todo="Remove it and run the same 'siftune run' again: it is made anew",
        )
    tensors = load(content)
    for name, tensor in tensors.items():
        if tensor.dim() and len(tensor) != len(shard):
            raise SiftuneError(
                f"tensor {name} has {len(tensor)} rows, the shard {len(shard)}",
                where=str(file),
                todo="Remove it and run again",
            )
    return tensors


TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
