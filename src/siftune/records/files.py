"""Files that appear whole or not at all: write aside, fsync, rename, fsync the folder.

A reader can therefore trust any file that has its final name, whatever killed the writer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from siftune.records.errors import SiftuneError

AGAIN = "Remove it and run the same command again"
"""What to do about a file that the next command makes anew."""


@contextmanager
def written_whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Yield a path aside `path`; when the block ends without error, it becomes `path` at once.

    An error in the block removes what was written aside. A full disk is raised as SiftuneError.
    lasting: False leaves it to the next file of the folder to make the new name survive a power cut; its content does
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of different machines may have one number
    aside = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.part")
    try:
        yield aside
        fsync(aside)
        os.replace(aside, path)
        if lasting:
            fsync(path.parent)
    except Exception as error:
        told = disk_error(error, path)
        if told is error:
            raise
        raise told from error
    finally:
        aside.unlink(missing_ok=True)


def disk_error(error: Exception, path: Path) -> Exception:
    """The SiftuneError for a full disk, quota or read-only folder; any other error unchanged."""
    code = error.errno if isinstance(error, OSError) else None
    # safetensors and Arrow report a full disk in words only
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return SiftuneError(
            "the disk is full",
            where=str(path),
            todo="Free some space and run the same command again: it goes on here",
        )
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return SiftuneError(
            f"cannot be written ({os.strerror(code)})",
            where=str(path),
            todo="Choose a folder you may write to (--out)",
        )
    return error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, indented, keys in the given order, one final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def read_json(path: Path, todo: str = AGAIN) -> Any:
    """Read a JSON file that siftune wrote; SiftuneError where it is broken, or no file at all."""
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # ValueError: also broken UTF-8, and numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise SiftuneError(f"is not valid JSON ({told})", where=str(path), todo=todo) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """As `write_json`, sealed."""
    write_json(path, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with its own digest under `seal`, so that `read_sealed` finds what was changed since."""
    return {**value, "seal": digest_of(value)[:32]}


def read_sealed(path: Path, *keys: str, todo: str = AGAIN) -> dict[str, Any]:
    """What `write_sealed` wrote, with these keys among its own; SiftuneError where it is no longer that.

    What an older siftune wrote has no seal to check.
    """
    found = read_object(path, todo=todo)
    if found.pop("seal", None) not in (None, digest_of(found)[:32]):
        raise SiftuneError(
            "is damaged: it is not what was written (its seal differs)", where=str(path), todo=todo
        )
    _check_keys(path, found, keys, todo)
    return found


def read_object(path: Path, *keys: str, todo: str = AGAIN) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object with these keys among its own."""
    found = read_json(path, todo)
    if not isinstance(found, dict):
        raise SiftuneError("holds no JSON object", where=str(path), todo=todo)
    _check_keys(path, found, keys, todo)
    return found


def _check_keys(path: Path, found: dict[str, Any], keys: Sequence[str], todo: str) -> None:
    if lacking := [key for key in keys if key not in found]:
        raise SiftuneError(f"lacks {', '.join(lacking)}", where=str(path), todo=todo)


def check_regular(path: Path) -> None:
    """Raise SiftuneError for what exists and is no file: reading from a pipe may wait for ever, from a device go on for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise SiftuneError(f"is {kind}, not a file", where=str(path), todo="Put a file in its place")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; SiftuneError where it is no file."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces, ASCII)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def fsync(path: Path) -> None:
    """Make a file or folder lasting."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
