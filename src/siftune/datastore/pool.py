"""`RUN/pool/`: the pool once read. Arrow shards of rows with their tokens and trained tokens, the plan, the index.

A row that can't be used keeps its place, without tokens, with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.side_car import fitting_side_car, is_sound
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.formats import conversation_of
from siftune.records.plain import text_of

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("where", pa.string()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),  # ok | truncated | quarantined
        ("reason", pa.string()),
        ("mask", pa.string()),  # the way by which trained tokens were found
        ("n_tokens", pa.int32()),
        ("n_trained", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
        ("messages", pa.string()),  # canonical, JSON
        ("columns", pa.string()),  # the row as it came, JSON
    ]
)


class TokenRows(NamedTuple):
    """The scorable rows of a shard: row numbers, and per row its token ids and trained tokens."""

    row_N: np.ndarray
    token_ids: list[np.ndarray]
    trained: list[np.ndarray]


class Pool:
    """A pool that has been read. `Pool(path)` opens it; SiftuneError where it isn't there whole."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / "plan.json").exists():
            raise SiftuneError(
                "holds no pool that was read to its end", where=str(path), todo="Run 'siftune run' first"
            )
        self.plan = ShardPlan.read(path / "plan.json")

    def table(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """A shard's rows (all, scorable or not), in pool order."""
        file = self.path / f"{shard.name}.arrow"
        kept = file.exists() and file.with_suffix(".json").exists()
        notes = fitting_side_car(file, shard.digest) if kept else None
        damaged = kept and (notes is None or not is_sound(file, notes))  # an older siftune wrote no side-car
        table = None if damaged else read_table(file)
        digest = (table.schema.metadata or {}).get(b"digest") if table else None
        if (
            table is None
            or digest != shard.digest.encode()
            or len(table) != len(shard)
            or not _is_pool(table)
        ):
            raise SiftuneError(
                "is missing, broken or not the shard of the plan",
                where=str(file),
                todo=f"Remove {self.path / 'plan.json'} and run the same command again: the pool is read anew",
            )
        return table.select(columns) if columns else table

    def token_rows(self, shard: Shard) -> TokenRows:
        """The scorable rows of a shard."""
        table = self.table(shard, ["row", "status", "token_ids", "trained"])
        table = table.filter(pa.array(table["status"].to_numpy(zero_copy_only=False) != "quarantined"))
        return TokenRows(
            table["row"].to_numpy(),
            [scalar.values.to_numpy(zero_copy_only=False) for scalar in table["token_ids"]],
            [scalar.values.to_numpy(zero_copy_only=False) for scalar in table["trained"]],
        )

    def tokens_of(self, rows: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token ids, trained) of the given scorable rows, in the order given; for a warm-up, so all are held."""
        wanted = np.fromiter(rows, dtype=np.int64)
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for shard in self.plan.shards:
            if ((wanted >= shard.start) & (wanted < shard.stop)).any():
                shard_rows = self.token_rows(shard)
                for row, ids, trained in zip(*shard_rows, strict=True):
                    found[int(row)] = (ids, trained)
        return [found[int(row)] for row in wanted]

    def texts(self, shard: Shard) -> list[str | None]:
        """The text of every row of a shard (`siftune.records.plain`), in pool order; None for a row in quarantine."""
        status, messages = (
            column.to_pylist() for column in self.table(shard, ["status", "messages"]).columns
        )
        return [
            None if of_row == "quarantined" else text_of(json.loads(turns))
            for of_row, turns in zip(status, messages, strict=True)
        ]

    def texts_of(self, rows: np.ndarray) -> list[str]:
        """The texts of the given usable rows, in the order given."""
        found: dict[int, str] = {}
        for shard in self.plan.shards:
            inside = rows[(rows >= shard.start) & (rows < shard.stop)]
            if len(inside):
                messages = self.table(shard, ["messages"])["messages"].take(pa.array(inside - shard.start))
                texts = [text_of(json.loads(turns)) for turns in messages.to_pylist()]
                found |= dict(zip(inside.tolist(), texts, strict=True))
        return [found[int(row)] for row in rows]

    def examples_of(self, rows: Iterable[int]) -> list[Example]:
        """The given usable rows as examples, in the order given."""
        wanted = np.fromiter(rows, dtype=np.int64)
        found: dict[int, Example] = {}
        for shard in self.plan.shards:
            inside = wanted[(wanted >= shard.start) & (wanted < shard.stop)]
            if len(inside):
                table = self.table(shard, ["row", "id", "source", "where", "columns"])
                for line in table.take(pa.array(inside - shard.start)).to_pylist():
                    columns = json.loads(line["columns"])
                    messages, tools = conversation_of(columns)
                    found[line["row"]] = Example(
                        line["id"], line["source"], messages, line["where"], columns, tools
                    )
        return [found[int(row)] for row in wanted]


def _is_pool(table: pa.Table) -> bool:
    """Are the columns those of a pool?"""
    return all(table.schema.get_field_index(field.name) >= 0 for field in SCHEMA) and all(
        table.schema.field(field.name).type == field.type for field in SCHEMA
    )


def read_table(file: Path) -> pa.Table | None:
    """An Arrow file, or None where it is missing or broken."""
    if not file.is_file():
        return None
    try:
        with pa.OSFile(str(file), "rb") as source, pa.ipc.open_file(source) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError):
        return None
