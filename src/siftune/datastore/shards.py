"""A shard on disk: a safetensors file, and a side-car that says what it is and holds its checksums.

The side-car is written after the file, so a shard is done when both exist and match: the `digest` of the plan's shard and
the file's length; everything else is made again. Whoever reads a shard checks its bytes, so a flipped one is found, not used.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from siftune.datastore.plan import Shard
from siftune.datastore.side_car import fitting_side_car, is_sound, rows_of, write_side_car
from siftune.records.errors import SiftuneError
from siftune.records.files import written_whole


def shard_file(folder: Path, shard: Shard) -> Path:
    """Where a shard's tensors are; its side-car has the ending `.json`."""
    return folder / f"{shard.name}.safetensors"


def write_shard(folder: Path, shard: Shard, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Commit a shard: tensors first, then the side-car with `notes` (JSON values that rerunning would make again).

    Where it is done already the first commit stands: a process that slept past its claim's end changes nothing.
    """
    if shard_notes(folder, shard) is not None:
        return
    file = shard_file(folder, shard)
    numbers = {name: _crc32(tensor.numpy()) for name, tensor in tensors.items() if tensor.dim() == 1}
    try:
        with written_whole(file, lasting=False) as aside:  # the side-car, next in the folder, makes both last
            # Not by save_file, which has a temporary file of its own that a killed process leaves behind
            aside.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        write_side_car(file, shard.digest, {**rows_of(shard), **notes, "numbers": numbers})
    except FileNotFoundError:
        # A run that found a sleeper's claim void made the shard, and cleared what lay aside
        if shard_notes(folder, shard) is None:
            raise


def shard_notes(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """The side-car of a shard that is done, or None where the shard has to be made."""
    return fitting_side_car(shard_file(folder, shard), shard.digest)


def read_shard(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """A shard's tensors, mapped from the file: what is not looked at takes no memory.

    Raises SiftuneError where it is missing, broken or of another pool.
    """
    file = shard_file(folder, shard)
    notes = shard_notes(folder, shard)
    if notes is None:
        raise SiftuneError(
            "is missing or not of this pool",
            where=str(file),
            todo="Run the same 'siftune run' again: it is made anew",
        )
    if not is_sound(file, notes):
        raise _damaged(file)
    try:
        with safe_open(file, "pt") as opened:
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _not_a_shard(error, file) from error
    for name, tensor in tensors.items():
        if tensor.dim() and len(tensor) != len(shard):
            raise SiftuneError(
                f"tensor {name} has {len(tensor)} rows, the shard {len(shard)}",
                where=str(file),
                todo="Remove it and run again",
            )
    return tensors


def read_numbers(folder: Path, shard: Shard, name: str) -> np.ndarray:
    """One tensor of a number a row, its own bytes checked; the features beside it are not read.

    Raises SiftuneError where it is damaged.
    """
    file = shard_file(folder, shard)
    notes = shard_notes(folder, shard) or {}
    try:
        with safe_open(file, "numpy") as opened:
            values_n = opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _not_a_shard(error, file) from error
    if values_n.shape != (len(shard),):
        raise _not_a_shard(f"{name} is not one number of every row", file)
    if _crc32(values_n) != notes.get("numbers", {}).get(name, _crc32(values_n)):
        raise _damaged(file)
    return values_n


def _crc32(values_n: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(values_n).data):08x}"


def _not_a_shard(why: object, file: Path) -> SiftuneError:
    """The error for a file that has a shard's name and a sound checksum, and is none."""
    return SiftuneError(
        f"is not a shard that siftune wrote ({why})",
        where=str(file),
        todo="Remove it and run the same 'siftune run' again: it is made anew",
    )


def _damaged(file: Path) -> SiftuneError:
    return SiftuneError(
        "is damaged: its bytes are not those that were written (its checksum differs)",
        where=str(file),
        todo="Remove it and run the same 'siftune run' again: it is made anew",
    )
