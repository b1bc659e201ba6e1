"""`RUN/pool/index.parquet` and `RUN/quarantine.jsonl`: what became of every input row.

Both are made from what is on disk (pool shards, the warm-up's rows, rows that got no feature), so making them again at any time is
harmless and the counts always add up: every row has the status ok, truncated or quarantined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import SCHEMA, Pool
from siftune.datastore.side_car import fitting_side_car, is_sound, write_side_car
from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular, digest_of, read_sealed, written_whole
from siftune.records.text import without_quotes

_KEPT = ["row", "id", "source", "fingerprint", "n_tokens", "n_trained", "status", "reason", "mask", "where"]
_COLUMNS = pa.schema(
    [*(SCHEMA.field(name) for name in _KEPT if name != "where"), pa.field("in_warmup", pa.bool_())]
)


def write_index(
    run: Path,
    pool: Pool,
    *,
    warmup_rows: Sequence[int],
    without_feature: Mapping[int, str],
    with_text: bool = True,
) -> None:
    """Write index and quarantine, shard by shard, unless they are there and made of just this.

    without_feature: rows that could be read but whose gradient could not be used, with the reason
    with_text:       False takes what a reason quotes of a row out
    """
    file = run / "pool" / "index.parquet"
    digests = [shard.digest for shard in pool.plan.shards]
    made_of = digest_of([digests, list(warmup_rows), sorted(without_feature.items()), with_text])
    found = fitting_side_car(file, made_of)
    if found is not None and is_sound(file, found):
        return
    in_warmup = np.zeros(pool.plan.n_rows, dtype=bool)
    in_warmup[np.asarray(warmup_rows, dtype=np.int64)] = True
    parts: list[pa.Table] = []
    with written_whole(run / "quarantine.jsonl") as aside, aside.open("w", encoding="utf-8") as quarantine:
        for shard in pool.plan.shards:
            table = pool.table(shard, _KEPT)
            status, reason = table["status"].to_pylist(), table["reason"].to_pylist()
            for row in range(shard.start, shard.stop):
                if row in without_feature:
                    status[row - shard.start], reason[row - shard.start] = "quarantined", without_feature[row]
            if not with_text:
                reason = [None if of_row is None else without_quotes(of_row) for of_row in reason]
            table = _replaced(table, "status", status)
            table = _replaced(table, "reason", reason)
            table = table.append_column("in_warmup", pa.array(in_warmup[shard.start : shard.stop]))
            left_out = table.filter(pa.array(~usable_rows(table)))
            for item in left_out.select(["row", "where", "id", "source", "reason"]).to_pylist():
                quarantine.write(json.dumps(item) + "\n")
            parts.append(table.drop_columns(["where"]))
    index = pa.concat_tables(parts).combine_chunks().replace_schema_metadata({"made_of": made_of})
    with written_whole(file) as aside:
        pq.write_table(index, aside)
    write_side_car(file, made_of, {})


def read_index(run: Path) -> pa.Table:
    """The index as Arrow: row, id, source, fingerprint, n_tokens, n_trained, status, reason, mask, in_warmup.

    Raises SiftuneError where it is missing, damaged, or not one row for every row of the pool's plan.
    """
    file = run / "pool" / "index.parquet"
    n_rows = ShardPlan.read(run / "pool" / "plan.json").n_rows
    try:
        check_regular(file)
        side_car = file.with_suffix(".json")
        if side_car.exists() and not is_sound(file, read_sealed(side_car)):
            raise _not_the_index("its bytes are not those that were written: its checksum differs", file)
        index = pq.ParquetFile(file).read()
        index = index.select(_COLUMNS.names).cast(_COLUMNS)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _not_the_index(f"{type(error).__name__}: {error}", file) from error
    if index.num_rows != n_rows:
        raise _not_the_index(f"it has {index.num_rows:,} rows, the plan {n_rows:,}", file)
    return index


def _not_the_index(why: str, file: Path) -> SiftuneError:
    return SiftuneError(
        f"is damaged or not the index of this pool ({' '.join(why.split())[:200]})",
        where=str(file),
        todo="Remove it and run the same 'siftune run' again: it is made anew",
    )


def usable_rows(table: pa.Table) -> np.ndarray:
    """Which rows (bool [N]) of the index or of a pool shard aren't quarantined."""
    return table["status"].to_numpy(zero_copy_only=False) != "quarantined"


def scorable_rows(index: pa.Table) -> np.ndarray:
    """Rows that aren't quarantined."""
    return np.flatnonzero(usable_rows(index))


def counts(index: pa.Table, column: str) -> dict[str, int]:
    """How often each value of a text column occurs, most often first; nulls left aside."""
    found = index[column].drop_null().value_counts()
    return dict(
        sorted(
            zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True),
            key=lambda item: -item[1],
        )
    )


def repeated_ids(index: pa.Table) -> list[str]:
    """Ids that more than one row has, in order of first appearance."""
    found = index["id"].value_counts()
    return found.field(0).take(pa.array(np.flatnonzero(found.field(1).to_numpy() > 1))).to_pylist()


def duplicate_rows(index: pa.Table) -> int:
    """How many scorable rows repeat an earlier one exactly (messages and tools)."""
    fingerprints = index["fingerprint"].take(pa.array(scorable_rows(index)))
    return len(fingerprints) - len(fingerprints.unique())


def _replaced(table: pa.Table, name: str, values: list[str | None]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, type=pa.string()))
