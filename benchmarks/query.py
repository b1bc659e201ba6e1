"""What asking a stored pool a new question costs: the whole way from files to influence, its phases, and the matrix product alone.

    python benchmarks/query.py --rows 200000 --store-dtype fp16 int8 --work FOLDER

The store is random unit features, written as siftune writes them; FOLDER (default: the system's for temporary files) must hold it: 3.1 GiB
at 200,000 rows of 8,192 in fp16. The files have just been written, so reading is from memory, not from the disk.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from clock import peak_mib_over, seconds_of
from record import write_result
from siftune.datastore.asking import Question
from siftune.datastore.features_writer import build_influence
from siftune.datastore.manifest import claim
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.quantise import BLOCK_ROWS, quantised, restored_blocks
from siftune.datastore.shards import read_shard, shard_file, write_shard
from siftune.datastore.side_car import checksums
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, features_file
from siftune.records.files import write_json
from siftune.records.recipe import StoreDtype

SHARD_ROWS = 256
DISTINCT = 8
"""Shards of numbers that are drawn; the store repeats them, since drawing takes longer than asking."""


def unit(n: int, d: int, draw: torch.Generator) -> Tensor:
    """Random rows of unit length."""
    rows = torch.randn(n, d, generator=draw)
    return rows / rows.norm(dim=1, keepdim=True)


def made_store(folder: Path, rows: int, features: int, store_dtype: StoreDtype) -> Datastore:
    """A store of `rows`, as siftune writes one."""
    shards = tuple(
        Shard(number, start, min(start + SHARD_ROWS, rows), f"{number:032x}")
        for number, start in enumerate(range(0, rows, SHARD_ROWS))
    )
    draw = torch.Generator().manual_seed(0)
    kept = [quantised(unit(SHARD_ROWS, features, draw), store_dtype) for _ in range(DISTINCT)]
    claim(folder / "manifest.json", {"method": "less"}, "the store", {})
    for shard in shards:
        tensors = kept[shard.number % DISTINCT]
        write_shard(folder, shard, {name: tensor[: len(shard)] for name, tensor in tensors.items()}, {})
    return Datastore(folder, ShardPlan(shards, 1, "", ()))


def made_target(folder: Path, rows: int, features: int) -> Target:
    """A target with features under checkpoint 1."""
    about = {"source": "", "digest": "", "fingerprint_V": [""] * rows, "subtask_V": [""] * rows}
    write_json(folder / "target.json", {"name": folder.name, **about})
    target = Target.open(folder)
    features_file(target, 1).parent.mkdir(parents=True)
    features_V_D = unit(rows, features, torch.Generator().manual_seed(1))
    save_file({"features": features_V_D.numpy()}, features_file(target, 1))
    return target


def measured(folder: Path, given: argparse.Namespace, store_dtype: StoreDtype) -> dict[str, object]:
    """One store: its size, the seconds of asking it and of each phase by itself."""
    store = made_store(folder / "store", given.rows, given.features, store_dtype)
    target = made_target(folder / "target", given.target_rows, given.features)
    files = [shard_file(store.path, shard) for shard in store.plan.shards]
    resident = unit(BLOCK_ROWS, given.features, torch.Generator().manual_seed(2))
    features_D_V = unit(given.target_rows, given.features, torch.Generator().manual_seed(1)).T
    question = Question(features_D_V.T.contiguous())
    blocks = sum(-(-len(shard) // BLOCK_ROWS) for shard in store.plan.shards)

    def ask() -> None:
        shutil.rmtree(target.path / "influence", ignore_errors=True)
        build_influence(target, 1, store)

    def converted() -> Iterator[Tensor]:
        for shard in store.plan.shards:
            for _, block in restored_blocks(mapped(shard)):
                yield block

    def mapped(shard: Shard) -> dict[str, Tensor]:
        with safe_open(shard_file(store.path, shard), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    work = {
        "asking": ask,
        "product alone": lambda: [resident @ features_D_V for _ in range(blocks)],
        "reading": lambda: [read_whole(file) for file in files],
        "reading, CRC-32": lambda: [checksums(file, with_sha256=False) for file in files],
        "reading, CRC-32, SHA-256": lambda: [checksums(file, with_sha256=True) for file in files],
        "conversion": lambda: [None for _ in converted()],
        "conversion and product": lambda: [block @ features_D_V for block in converted()],
        "reading, CRC-32, product as stored": lambda: [
            question.influence(read_shard(store.path, shard)) for shard in store.plan.shards
        ],
    }  # fmt: skip
    ask()  # what is loaded at first use is loaded
    seconds = seconds_of(work, given.rounds)
    gib = sum(file.stat().st_size for file in files) / 2**30
    found = {
        "store_dtype": store_dtype,
        "gib": round(gib, 3),
        "seconds": seconds,
        "asking_over_product": {
            clock: round(seconds["asking"][clock] / seconds["product alone"][clock], 2)
            for clock in ("cpu", "wall")
        },
        "peak_mib_over_before": peak_mib_over(ask),
    }
    print(found, flush=True)
    return found


def read_whole(file: Path) -> None:
    """Read a file and drop what was read."""
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(_BUFFER):
            pass


_BUFFER = bytearray(2**18)


def main() -> None:
    """Measure every dtype asked for."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--rows", type=int, default=20_000)
    arguments.add_argument("--features", type=int, default=8192)
    arguments.add_argument("--target-rows", type=int, default=100)
    arguments.add_argument(
        "--store-dtype", nargs="+", choices=get_args(StoreDtype), default=get_args(StoreDtype)
    )
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--work", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    stores = []
    for store_dtype in given.store_dtype:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            stores.append(measured(Path(folder), given, store_dtype))
    about = {name: getattr(given, name) for name in ("rows", "features", "target_rows", "threads", "rounds")}
    print(write_result("query", {**about, "shard_rows": SHARD_ROWS, "stores": stores}))


if __name__ == "__main__":
    main()
