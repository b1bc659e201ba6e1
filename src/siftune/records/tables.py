"""Rows from Arrow: Parquet files, folders that `datasets` wrote, and data sets on the hub. Read in batches.

What JSON can't hold is said in `row.plain`; a column of bytes (images, audio) is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from siftune.records.errors import SiftuneError
from siftune.records.row import Row, plain

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 512  # rows turned into Python objects at a time


def parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    """The rows of a Parquet file; `where` = path:row, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in _rows(batch, shown, count):
                    count += 1
                    yield row
    except (OSError, pa.ArrowException) as error:
        raise SiftuneError(
            f"can't be read as Parquet, after {count} rows: {error}",
            where=shown,
            todo="Copy, download or write the file again",
        ) from error


def folder_rows(folder: Path, split: str | None, shown: str) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote; `split` chooses among those of a DatasetDict."""
    import pyarrow as pa
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    # Any Exception: what the library makes of a state.json that it didn't write differs from field to field
    except Exception as error:
        raise SiftuneError(
            f"can't be read as a folder of datasets: {type(error).__name__}: {error}",
            where=shown,
            todo="Write it again with save_to_disk",
        ) from error
    if isinstance(dataset, Dataset):
        if split is not None:
            raise SiftuneError(
                f"has no splits, so no {split!r}", where=shown, todo=f"Write {str(folder)!r} alone"
            )
    elif split is None or split not in dataset:
        problem = "has several splits" if split is None else f"has no split {split!r}"
        splits = ", ".join(map(str, dataset))
        raise SiftuneError(
            f"{problem} ({splits})", where=shown, todo=f"Name one: {folder}:{next(iter(dataset), 'SPLIT')}"
        )
    else:
        dataset = dataset[split]
    count = 0
    try:
        for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
            for row in _rows(table, shown, count):
                count += 1
                yield row
    except (OSError, pa.ArrowException) as error:
        raise SiftuneError(
            f"can't be read to its end, after {count} rows: {error}",
            where=shown,
            todo="Write it again with save_to_disk",
        ) from error


def hub_rows(name: str, config: str | None, split: str, revision: str | None, shown: str) -> Iterator[Row]:
    """The rows of a data set on the hub, streamed. A token is found by the library (HF_TOKEN); nothing here sees it."""
    from datasets import load_dataset

    count = 0
    # Any Exception: the library passes on those of its HTTP client, which differ between versions
    try:
        dataset = load_dataset(name, config, split=split, revision=revision, streaming=True)
        tables = iter(dataset.with_format("arrow").iter(batch_size=_BATCH))
    except Exception as error:
        _hub_error(error, shown, count)
    while True:
        try:
            table = next(tables, None)
        except Exception as error:
            _hub_error(error, shown, count)
        if table is None:
            return
        for row in _rows(table, shown, count):
            count += 1
            yield row


def _hub_error(error: Exception, shown: str, count: int) -> NoReturn:
    text = " ".join(str(error).split())[:500]
    kind = type(error).__name__
    if "gated" in text.lower() or kind == "GatedRepoError":
        todo = "Accept its terms on the hub and put your token into the environment variable HF_TOKEN"
    elif "split" in text.lower():
        todo = "Name a split that it has: owner/name:SPLIT"
    elif "config" in text.lower():
        todo = "Name one of its configurations: owner/name/CONFIG"
    elif isinstance(error, FileNotFoundError) or kind == "RepositoryNotFoundError":
        todo = "Check the name (no file or folder here is called so); a private set needs HF_TOKEN in the environment"
    else:
        todo = "Check the name and the network, or download the set and give its files"
    after = f", after {count} rows" if count else ""
    raise SiftuneError(
        f"can't be read from the hub{after}: {kind}: {text}", where=shown, todo=todo
    ) from error


def _rows(batch: pa.RecordBatch | pa.Table, shown: str, before: int) -> Iterator[Row]:
    """The rows of a batch, the first of which is number `before` + 1."""
    import pyarrow as pa

    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SiftuneError(f"has two columns {twice!r}", where=shown, todo="Rename or remove one of them")
    columns = []
    for field in batch.schema:
        opened = _json_opener(field.type)
        try:
            columns.append([plain(opened(value)) for value in batch.column(field.name).to_pylist()])
        except TypeError as error:
            raise SiftuneError(
                f"column {field.name!r} holds {error}, which JSON can't hold",
                where=shown,
                todo="Remove that column from the data (siftune reads text alone)",
            ) from error
        # a date beyond the year 9999, JSON nested without end
        except (ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
            raise SiftuneError(
                f"column {field.name!r} holds broken text or numbers ({error})",
                where=f"{shown}, rows {before + 1} to {before + batch.num_rows}",
                todo="Write the file again",
            ) from error
    for number, values in enumerate(zip(*columns, strict=True), before + 1):
        yield Row(f"{shown}:{number}", dict(zip(names, values, strict=True)))


def _json_opener(kind: pa.DataType) -> Callable[[Any], Any]:
    """What turns a value of Arrow type `kind` into what it stands for: columns of type JSON come as text."""
    import pyarrow.types as types

    if getattr(kind, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if types.is_list(kind) or types.is_large_list(kind):
        opened = _json_opener(kind.value_type)
        return (
            _same
            if opened is _same
            else lambda value: None if value is None else [opened(item) for item in value]
        )
    if types.is_struct(kind):
        parts = {part.name: _json_opener(part.type) for part in kind}
        if any(opened is not _same for opened in parts.values()):
            return lambda value: (
                None if value is None else {key: parts[key](item) for key, item in value.items()}
            )
    return _same


def _same(value: Any) -> Any:
    return value
