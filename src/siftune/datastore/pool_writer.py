"""Reading a pool into a run: rows stream through, no more than a shard of them is held at a time.

A shard that is already there, made of the same rows by the same encoding, is not made again; the plan is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import SCHEMA, Pool
from siftune.datastore.side_car import fitting_side_car, is_sound, rows_of, write_side_car
from siftune.records.errors import SiftuneError
from siftune.records.example import Example, LeftOut
from siftune.records.files import digest_of, written_whole


def build_pool(
    path: Path,
    sources: Sequence[str],
    rows: Iterable[Example | LeftOut],
    encoder: ChatEncoder,
    *,
    shard_rows: int,
    batch_tokens: int,
    on_shard: Callable[[Shard], None] = lambda shard: None,
) -> Pool:
    """Read `rows` of `sources` into `path` and return the pool. Run again after a cut, it encodes only what is missing.

    Given a pool that exists, the rows are appended as new shards, numbered on from its last row.
    """
    before: tuple[Shard, ...] = ()
    read_before: tuple[str, ...] = ()
    if (path / "plan.json").exists():
        plan = ShardPlan.read(path / "plan.json")
        before, batch_tokens, read_before = plan.shards, plan.batch_tokens, plan.sources
        if plan.encoder != encoder.fingerprint:
            raise SiftuneError(
                "the tokenizer, chat template, mask or max_length is not the one that this pool was read with",
                where=str(path),
                todo="Use the run's own model and settings, or start a new run with --out",
            )
    shards = list(before)
    for group in _groups(iter(rows), shard_rows):
        start = shards[-1].stop if shards else 0
        digest = digest_of([encoder.fingerprint, start, *(_content(item) for item in group)])[:32]
        shard = Shard(len(shards), start, start + len(group), digest)
        file = path / f"{shard.name}.arrow"
        notes = fitting_side_car(file, digest)
        if notes is None or not is_sound(file, notes):
            _write(file, _encoded_table(group, start, encoder), shard)
        shards.append(shard)
        on_shard(shard)
    ShardPlan(tuple(shards), batch_tokens, encoder.fingerprint, (*read_before, *sources)).write(
        path / "plan.json"
    )
    return Pool(path)


def _groups(rows: Iterator[Example | LeftOut], size: int) -> Iterator[list[Example | LeftOut]]:
    while group := list(islice(rows, size)):
        yield group


def _content(item: Example | LeftOut) -> list[str]:
    if isinstance(item, LeftOut):
        return [item.where, item.reason, item.text]
    return [item.where, item.id, item.source, json.dumps(item.columns, default=str), item.fingerprint]


def _encoded_table(group: list[Example | LeftOut], start: int, encoder: ChatEncoder) -> pa.Table:
    records = []
    for row, item in enumerate(group, start):
        encoded = item.reason if isinstance(item, LeftOut) else encoder.encode(item)
        record = {
            "row": row,
            "id": item.id,
            "source": item.source,
            "where": item.where,
            "n_tokens": 0,
            "n_trained": 0,
        }
        if isinstance(item, Example):
            record |= {
                "fingerprint": item.fingerprint,
                "messages": json.dumps(item.messages),
                "columns": json.dumps(item.columns),
            }
        else:
            record |= {"columns": json.dumps(item.text)}
        if isinstance(encoded, Encoded):
            record |= {
                "status": "truncated" if encoded.truncated else "ok",
                "mask": encoded.way,
                "n_tokens": len(encoded.token_ids),
                "n_trained": int(encoded.trained.sum()),
                "token_ids": encoded.token_ids,
                "trained": encoded.trained,
            }
        else:
            record |= {"status": "quarantined", "reason": encoded}
        records.append(record)
    return pa.Table.from_pylist(records, schema=SCHEMA)


def _write(file: Path, table: pa.Table, shard: Shard) -> None:
    table = table.replace_schema_metadata({"digest": shard.digest})
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        written_whole(file) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    write_side_car(file, shard.digest, rows_of(shard))
