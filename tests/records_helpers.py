"""Writers for the reading tests: the same rows in every container that siftune reads."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

import siftune

Rows = Sequence[dict[str, Any]]


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(question: str = "2+2?", answer: str = "4") -> list[dict[str, Any]]:
    return [turn("user", question), turn("assistant", answer)]


def lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _parquet(folder: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "p.parquet", row_group_size=3)
    return str(folder / "p.parquet")


def _saved(folder: Path, rows: Rows) -> str:
    Dataset.from_list(list(rows)).save_to_disk(folder / "saved")
    return str(folder / "saved")


def _saved_split(folder: Path, rows: Rows) -> str:
    train, other = Dataset.from_list(list(rows)), Dataset.from_list([{"x": 1}])
    DatasetDict({"train": train, "other": other}).save_to_disk(folder / "dict")
    return f"{folder / 'dict'}:train"


TEXT_CONTAINERS: dict[str, Callable[[Path, Rows], str]] = {
    "jsonl": lambda d, rows: write(d / "p.jsonl", lines(rows)),
    "crlf, mark, blank lines": lambda d, rows: write(
        d / "p.ndjson", b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n \r\n")
    ),
    "no last newline": lambda d, rows: write(d / "P.JSONL", lines(rows)[:-1]),
    "jsonl.gz": lambda d, rows: write(d / "p.jsonl.gz", gzip.compress(lines(rows))),
    "jsonl.zst": lambda d, rows: write(d / "p.jsonl.zst", zstd(lines(rows))),
    "json": lambda d, rows: write(d / "p.json", json.dumps(list(rows)).encode()),
    "indented json": lambda d, rows: write(
        d / "p.json",
        b"\xef\xbb\xbf\n" + json.dumps(list(rows), indent=1, ensure_ascii=False).encode() + b"\n",
    ),
    "json.gz": lambda d, rows: write(d / "p.json.gz", gzip.compress(json.dumps(list(rows)).encode())),
    "json.zst": lambda d, rows: write(d / "p.json.zst", zstd(json.dumps(list(rows)).encode())),
    "lines in json": lambda d, rows: write(d / "p.json", lines(rows)),
}
ARROW_CONTAINERS: dict[str, Callable[[Path, Rows], str]] = {
    "parquet": _parquet,
    "datasets folder": _saved,
    "split of a datasets folder": _saved_split,
}
CONTAINERS = TEXT_CONTAINERS | ARROW_CONTAINERS


def in_fresh_python(code: str) -> str:
    """What `code` prints in a Python of its own, without the type checks that tests switch on."""
    package = siftune.__file__
    assert package is not None
    environment = {**os.environ, "PYTHONPATH": str(Path(package).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
