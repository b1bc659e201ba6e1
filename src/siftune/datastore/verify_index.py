"""Do `RUN/pool/index.parquet` and `RUN/quarantine.jsonl` still say of every row what the pool's shards say?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siftune.datastore.index import usable_rows
from siftune.datastore.pool import Pool
from siftune.datastore.verify import Fault
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json

SAME = ("row", "id", "source", "fingerprint", "n_tokens", "n_trained", "mask")
"""Columns that the index takes from the pool as they are."""
OWN = ("status", "reason", "in_warmup")


def index_faults(run: Path, pool: Pool) -> Iterator[Fault]:
    """What is wrong with index and quarantine. Shards of the pool that can't be read are left to `verify`."""
    file, n_rows = run / "pool" / "index.parquet", pool.plan.n_rows
    try:
        index = pq.read_table(file)
    except FileNotFoundError:
        yield Fault(file, 0, n_rows, "is missing")
        return
    except (pa.ArrowException, OSError):
        yield Fault(file, 0, n_rows, "is damaged: it can't be read")
        return
    if index.num_rows != n_rows or set(index.column_names) != {*SAME, *OWN}:
        yield Fault(file, 0, n_rows, f"is not of this pool: it has {index.num_rows} rows, the plan {n_rows}")
        return
    for shard in pool.plan.shards:
        try:
            table = pool.table(shard, [*SAME, "status"])
        except SiftuneError:
            continue
        part = index.slice(shard.start, len(shard))
        what = [name for name in SAME if not part[name].equals(table[name])]
        usable_n = usable_rows(part)
        if (usable_n & ~usable_rows(table)).any():
            what.append("status")
        if not np.array_equal(part["reason"].is_null().to_numpy(), usable_n):
            what.append("reason")
        if what:
            yield Fault(
                file, shard.start, shard.stop, f"is damaged: {', '.join(what)} are not what the pool says"
            )
    warmup_rows = _warmup_rows(run)
    if warmup_rows is not None and np.flatnonzero(index["in_warmup"].to_numpy()).tolist() != warmup_rows:
        yield Fault(file, 0, n_rows, "is damaged: its rows of the warm-up are not those of warmup.json")
    yield from _quarantine(run, np.flatnonzero(~usable_rows(index)), n_rows)


def _warmup_rows(run: Path) -> list[int] | None:
    """Sorted; none where checkpoints were adopted. None where the file that names them is damaged."""
    file = run / "checkpoints" / "warmup.json"
    try:
        return sorted(read_json(file)["rows"]) if file.exists() else []
    except (SiftuneError, KeyError, TypeError):
        return None


def _quarantine(run: Path, quarantined: np.ndarray, n_rows: int) -> Iterator[Fault]:
    file = run / "quarantine.jsonl"
    if not file.exists():
        yield Fault(file, 0, n_rows, "is missing")
        return
    try:
        found = [json.loads(line)["row"] for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, KeyError, TypeError):
        yield Fault(file, 0, n_rows, "is damaged: it can't be read")
        return
    if found != quarantined.tolist():
        yield Fault(file, 0, n_rows, "has other rows than the index has in quarantine")
