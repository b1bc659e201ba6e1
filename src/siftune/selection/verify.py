"""Is a selection still what was chosen from this pool? Summary, scores and chosen rows against the pool and against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siftune.datastore.plan import Shard
from siftune.datastore.pool import Pool
from siftune.datastore.verify import Fault
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of
from siftune.selection.selection import MARK, Selection, line_of

SAME = ("row", "id", "source", "n_tokens", "n_trained")
"""Columns that the scores take from the pool as they are."""


def selection_faults(folder: Path, pool: Pool) -> Iterator[Fault]:
    """What is wrong with the files of a selection. Shards of the pool that can't be read are left to `datastore.verify`."""
    about = folder / "selection.json"
    if not about.exists():
        yield Fault(about, 0, 0, "is missing: the selection was not written to its end")
        return
    try:
        selection = Selection.open(folder)
        n_rows, made_of = int(selection.settings["pool_rows"]), selection.settings["pool"]
        n_chosen = int(selection.summary["n_selected"])
    except (SiftuneError, KeyError, TypeError, ValueError):
        yield Fault(about, 0, 0, "is damaged")
        return
    shards = [shard for shard in pool.plan.shards if shard.stop <= n_rows]  # rows may have come since
    if digest_of([shard.digest for shard in shards])[:32] != made_of:
        yield Fault(about, 0, n_rows, "is of another pool")
        return
    scores, lines = _scores(folder / "scores.parquet"), _lines(selection.file)
    if isinstance(scores, str):
        yield Fault(folder / "scores.parquet", 0, n_rows, scores)
    elif what := _off_pool(scores, pool, shards):
        yield Fault(folder / "scores.parquet", 0, n_rows, what)
    if isinstance(lines, str):
        yield Fault(selection.file, 0, n_rows, lines)
    elif len(lines) != n_chosen:
        yield Fault(selection.file, 0, n_rows, f"has {len(lines)} rows, {n_chosen} were chosen")
    elif what := _other_rows(lines, pool, shards):
        yield Fault(selection.file, 0, n_rows, what)
    elif not isinstance(scores, str) and [_choice(line) for line in lines] != _chosen(scores):
        yield Fault(selection.file, 0, n_rows, "is not what scores.parquet says was chosen")


def _scores(file: Path) -> pa.Table | str:
    """The scores, or what is wrong."""
    try:
        scores = pq.read_table(file)
    except FileNotFoundError:
        return "is missing"
    except (pa.ArrowException, OSError):
        return "is damaged: it can't be read"
    lacking = {*SAME, "score", "rank", "selected"} - set(scores.column_names)
    return f"is damaged: it lacks {', '.join(sorted(lacking))}" if lacking else scores


def _off_pool(scores: pa.Table, pool: Pool, shards: list[Shard]) -> str | None:
    n_rows = shards[-1].stop if shards else 0
    if scores.num_rows != n_rows:
        return f"has {scores.num_rows} rows, it was chosen from {n_rows}"
    for shard in shards:
        try:
            table = pool.table(shard, list(SAME))
        except SiftuneError:
            continue
        part = scores.slice(shard.start, len(shard))
        if off := [name for name in SAME if not part[name].equals(table[name])]:
            return f"is damaged: {', '.join(off)} are not what the pool says"
    return None


def _lines(file: Path) -> list[dict[str, Any]] | str:
    """The chosen rows, or what is wrong."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
        for line in lines:
            _choice(line)
    except FileNotFoundError:
        return "is missing"
    except (ValueError, KeyError, TypeError):
        return "is damaged: it can't be read"
    return lines


def _choice(line: dict[str, Any]) -> tuple[int, int, float]:
    """Row, rank and score of a chosen row."""
    mark = line[MARK]
    return mark["row"], mark["rank"], mark["score"]


def _chosen(scores: pa.Table) -> list[tuple[int, int, float]]:
    """The same, as the scores have it, best first."""
    chosen = scores.filter(scores["selected"].fill_null(False)).sort_by("rank")
    found = zip(
        *(chosen[name].to_numpy(zero_copy_only=False).tolist() for name in ("row", "rank", "score")),
        strict=True,
    )
    return list(found)


def _other_rows(lines: list[dict[str, Any]], pool: Pool, shards: list[Shard]) -> str | None:
    """What is wrong with chosen rows beside the pool's."""
    place_of = {line[MARK]["row"]: place for place, line in enumerate(lines)}
    for shard in shards:
        rows = np.array([row for row in place_of if shard.start <= row < shard.stop], dtype=np.int64)
        try:
            table = pool.table(shard, ["columns", "messages"]).take(pa.array(rows - shard.start))
        except SiftuneError:
            continue
        columns, messages = (column.to_pylist() for column in table.columns)
        for row, of_row, turns in zip(rows.tolist(), columns, messages, strict=True):
            line = {name: value for name, value in lines[place_of[row]].items() if name != MARK}
            kept = line_of(of_row, turns)
            kept.pop(MARK, None)
            if json.dumps(line, sort_keys=True) != json.dumps(kept, sort_keys=True):  # NaN equals itself so
                return f"is damaged: its row {row} is not the pool's"
    return None
