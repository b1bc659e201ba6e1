"""A datastore as one file for other programs: NumPy's .npy, or Parquet. Block by block, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.records.errors import SiftuneError
from siftune.records.files import written_whole

NUMBERS = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


def export(pool: Pool, store: Datastore, to: Path, *, dtype: str = "fp32") -> tuple[int, int]:
    """Write the features of all pool rows, in pool order, and return (rows, numbers of a row).

    .npy:     an array [N, D]; a row without a feature is NaN
    .parquet: `row`, `id`, `features` (a list); null for a row without one

    Numbers are those that influence is made of: as stored, an int8 row times its scale, whose length is 1 to rounding only.
    Raises SiftuneError for another ending, a dtype that isn't fp32 or fp16, a file that is there, a store that is not whole.
    """
    write = _WRITERS.get(to.suffix.lower())
    if write is None:
        raise SiftuneError("is neither .npy nor .parquet", where=str(to), todo="Choose one of these endings")
    if dtype not in NUMBERS:
        raise SiftuneError(f"there is no dtype {dtype!r}", where="--dtype", todo="Choose fp32 or fp16")
    if to.exists():
        raise SiftuneError("exists already", where=str(to), todo="Remove it, or name another file")
    if missing := store.missing():
        raise SiftuneError(
            f"lacks {len(missing)} shards, the first {missing[0].name}",
            where=str(store.path),
            todo="Run the same 'siftune run' again: they are made",
        )
    with written_whole(to) as aside:
        return write(pool, store, aside, NUMBERS[dtype])


def _blocks(store: Datastore, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    for shard in store.plan.shards:
        for start, features_n_D in store.blocks(shard):
            yield start, features_n_D.astype(dtype, copy=False)


def _write_npy(pool: Pool, store: Datastore, file: Path, dtype: np.dtype) -> tuple[int, int]:
    width = 0
    with file.open("wb") as out:
        for start, features_n_D in _blocks(store, dtype):
            if start == 0:
                width = features_n_D.shape[1]
                header = {"descr": dtype.str, "fortran_order": False, "shape": (store.plan.n_rows, width)}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(np.ascontiguousarray(features_n_D).data)
    return store.plan.n_rows, width


def _write_parquet(pool: Pool, store: Datastore, file: Path, dtype: np.dtype) -> tuple[int, int]:
    number = pa.from_numpy_dtype(dtype)
    schema = pa.schema([("row", pa.int64()), ("id", pa.string()), ("features", pa.list_(number))])
    width = 0
    # random numbers don't compress: nothing is gained by trying
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as out:
        for shard in store.plan.shards:
            ids = pool.table(shard, ["id"])["id"].combine_chunks()
            for start, features_n_D in store.blocks(shard):
                n, width = features_n_D.shape
                flat = pa.array(features_n_D.astype(dtype, copy=False).reshape(-1), type=number)
                offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
                without_N = pa.array(np.isnan(features_n_D[:, 0]))
                lists = pa.ListArray.from_arrays(offsets, flat, mask=without_N)
                of_block = ids.slice(start - shard.start, n)
                out.write_table(pa.table([pa.array(range(start, start + n)), of_block, lists], schema=schema))
    return store.plan.n_rows, width


_WRITERS = {".npy": _write_npy, ".parquet": _write_parquet}
