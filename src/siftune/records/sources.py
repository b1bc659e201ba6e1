"""Where rows come from: a file, a folder, or a data set on the hub, as a person writes it after --pool or --target.

    rows.jsonl  rows.ndjson  rows.json      each also with .gz or .zst     rows.parquet
    FOLDER            a folder of such files, by name, or one that `datasets` wrote with save_to_disk
    FOLDER:SPLIT      one split of a DatasetDict
    OWNER/NAME[/CONFIG][:SPLIT][@REVISION]      on the hub; split `train` where none is named

What exists as a file or folder is one; a hub id is what doesn't exist and doesn't look like a path.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from siftune.records.errors import SiftuneError
from siftune.records.jsonstream import json_lines, json_rows
from siftune.records.row import Row
from siftune.records.tables import folder_rows, hub_rows, parquet_rows

_READERS = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_rows, ".parquet": parquet_rows}
_PACKED = (".gz", ".zst")
ENDINGS = ".jsonl, .ndjson, .json (each also with .gz or .zst), .parquet"
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?(?:@(\S+))?")


class Source(NamedTuple):
    """One file, split or hub data set. `rows()` reads it from its start; `name` is its rows' source by default."""

    given: str
    name: str
    rows: Callable[[], Iterator[Row]]


def find_sources(given: str) -> list[Source]:
    """What `given` names: one source, or one for each data file of a folder, sorted by name.

    Raises SiftuneError for a path that doesn't exist, an unknown ending, and a folder without data.
    """
    if not given:  # Path("") would be the current folder
        raise SiftuneError(
            "the path is empty", where="''", todo="Name a file, a folder or a data set on the hub"
        )
    path = Path(os.path.expanduser(given))
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:  # a name too long for the system, a folder that may not be looked into
        raise SiftuneError(
            f"can't be looked up ({error})", where=_shown(given)[:200], todo="Check the path"
        ) from error
    if is_folder:
        return _folder(path, None, given)
    if is_there:
        return [_file(path, given)]
    before, colon, split = given.rpartition(":")
    if colon and Path(os.path.expanduser(before)).is_dir():
        return _folder(Path(os.path.expanduser(before)), split, given)
    hub = _HUB.fullmatch(given)
    if hub is None or given.startswith((".", "/", "~")) or _ending(Path(given)):
        raise SiftuneError(
            "there is no such file or folder",
            where=given,
            todo="Check the path (a data set on the hub is OWNER/NAME[/CONFIG][:SPLIT][@REVISION])",
        )
    name, config, split, revision = hub.groups()
    rows = partial(hub_rows, name, config, split or "train", revision, given)
    return [Source(given, name.rpartition("/")[2], rows)]


def _folder(folder: Path, split: str | None, given: str) -> list[Source]:
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return [Source(given, folder.resolve().name, partial(folder_rows, folder, split, given))]
    if split is not None:
        raise SiftuneError(
            f"is not a folder that datasets wrote, so it has no split {split!r}",
            where=given,
            todo="Name a file in it",
        )
    files = sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    files = [path for path in files if _ending(path)]
    if not files:
        raise SiftuneError("the folder holds no data", where=given, todo=f"Known endings are {ENDINGS}")
    return [_file(path, f"{given.rstrip('/')}/{path.name}") for path in files]


def _file(path: Path, given: str) -> Source:
    ending = _ending(path)
    if not ending:
        raise SiftuneError(
            "the ending of the file is not known", where=given, todo=f"Known endings are {ENDINGS}"
        )
    if not path.is_file():
        raise SiftuneError(
            "is no file: a pipe, a device, or a link to nothing",
            where=_shown(given),
            todo="Write the rows to a file first: they are read more than once",
        )
    read = _READERS[
        next(part for part in _READERS if ending.lower().startswith(part + ".") or ending.lower() == part)
    ]
    return Source(given, path.name.removesuffix(ending), partial(_guarded, read, path, _shown(given)))


def _ending(path: Path) -> str:
    """The file's known ending as it stands in its name (`.JSONL.gz`), else empty."""
    packed = path.suffix if path.suffix.lower() in _PACKED else ""
    ending = Path(path.name.removesuffix(packed)).suffix
    if ending.lower() not in _READERS or (packed and ending.lower() == ".parquet"):
        return ""
    return ending + packed


def _shown(given: str) -> str:
    return given.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _guarded(read: Callable[[Path, str], Iterator[Row]], path: Path, shown: str) -> Iterator[Row]:
    """The rows of a file; what stops the reading becomes a SiftuneError that says how far it came."""
    count = 0
    try:
        for row in read(path, shown):
            count += 1
            yield row
    except (OSError, EOFError, zlib.error) as error:
        raise SiftuneError(
            f"can't be read to its end, after {count} rows: {error}",
            where=shown,
            todo="See that you may read it, and copy or download it again if it is cut off",
        ) from error
