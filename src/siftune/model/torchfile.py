"""Files that torch.save wrote (`optimizer.pt`, `adapter_model.bin`): opened without running anything that is in them.

Such a file is a zip archive of a pickle and the numbers. Before `torch.load(weights_only=True)` opens it, the archive must be
stored as torch stores it (a packed one could unfold to any size), and the pickle may name nothing but what tensors are made of.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular

MOST_PICKLE = 2**26
"""Bytes of the pickle in an archive: it holds names and shapes, the numbers lie beside it."""

_TENSOR_PARTS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    *(f"torch {name}" for name in vars(torch) if name.endswith("Storage")),
}


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote: tensors (on the CPU), numbers and texts in dicts, lists and tuples, nothing else.

    Raises SiftuneError where the file holds anything more, or is damaged.
    """
    check_regular(path)
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SiftuneError:
        raise
    # Any Exception: the readers of zip, of pickles and torch's own raise what they like on a damaged file
    except Exception as error:
        short = " ".join(str(error).split())[:200]
        raise SiftuneError(
            f"cannot be read ({short or type(error).__name__})",
            where=str(path),
            todo="Copy it again, or train again",
        ) from error


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise _refused(
            "cannot be read: it is no file of torch.save, or cut off, or of a torch before 1.6", path
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _refused("is a packed archive, as torch.save writes none", path)
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise _refused("is an archive whose parts are longer than itself", path)
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE:
            raise _refused("is not an archive of torch.save", path)
        data = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise _refused(f"holds more than tensors ({opcode.name})", path)
        if opcode.name == "GLOBAL" and argument not in _TENSOR_PARTS:
            raise _refused(f"holds more than tensors: {str(argument).replace(' ', '.')}", path)


def _refused(what: str, path: Path) -> SiftuneError:
    return SiftuneError(
        f"{what}; nothing in it was run",
        where=str(path),
        todo="Use a checkpoint that a Trainer wrote with optim=adamw_torch, and adapters in safetensors",
    )
