"""The side-car of a file: a small JSON file beside it, written after it, that says what it is and holds its checksums.

Every shard has one, and every file of a target's features and vectors.

`crc32` is checked at every reading: it finds any change within four neighbouring bytes, for a third of what SHA-256 costs.
`sha256` is checked by `siftune datastore verify`.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

from siftune.datastore.plan import Shard
from siftune.records.files import check_regular, read_sealed, write_sealed

_CHUNK = 2**18
"""Bytes hashed at a time: few enough to stay in the processor's cache."""


def write_side_car(file: Path, digest: str, notes: dict[str, Any], content: Path | None = None) -> None:
    """Commit `file`. digest: of what it was made for; notes: JSON values that rerunning would make again.

    content: where its bytes still are, for a file that takes its name after its side-car
    """
    content = content or file
    crc32, sha256 = checksums(content, with_sha256=True)
    sums = {"digest": digest, "bytes": content.stat().st_size, "crc32": crc32, "sha256": sha256}
    write_sealed(file.with_suffix(".json"), {**sums, **notes})


def rows_of(shard: Shard) -> dict[str, int]:
    """What the side-car of a shard says of its rows."""
    return {"start": shard.start, "stop": shard.stop}


def fitting_side_car(file: Path, digest: str) -> dict[str, Any] | None:
    """The side-car of a file that is done, or None where file or side-car lack or aren't of this digest and length."""
    if not (file.exists() and file.with_suffix(".json").exists()):
        return None
    notes = read_sealed(file.with_suffix(".json"))
    done = notes.get("digest") == digest and notes.get("bytes") == file.stat().st_size
    return notes if done else None


def is_sound(file: Path, notes: dict[str, Any]) -> bool:
    """Are a file's bytes those that were written? By `crc32`; a side-car of an older siftune has `sha256` alone."""
    if "crc32" in notes:
        return checksums(file, with_sha256=False)[0] == notes["crc32"]
    return checksums(file, with_sha256=True)[1] == notes.get("sha256")


def checksums(file: Path, *, with_sha256: bool) -> tuple[str, str]:
    """Hex CRC-32 and SHA-256 of a file's bytes, from one reading; without the latter, which takes longer, ""."""
    check_regular(file)
    crc32, sha256, buffer = 0, hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            crc32 = zlib.crc32(buffer[:count], crc32)
            if with_sha256:
                sha256.update(buffer[:count])
    return f"{crc32:08x}", sha256.hexdigest() if with_sha256 else ""
