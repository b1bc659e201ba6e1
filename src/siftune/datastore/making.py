"""Making what is missing of a store, shard by shard, beside other processes: what features and vectors share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from siftune.datastore.careful import MOST, Care, Told
from siftune.datastore.claims import shards_to_make
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.pool import Pool
from siftune.datastore.shards import shard_notes
from siftune.datastore.trouble import DEATHS, Trouble


@dataclass(frozen=True)
class OnFailure:
    """What whoever makes shards does where one fails.

    told:  is told of it, for the screen and the log
    apart: makes a shard in processes of its own, where processes died over it; None makes it here
    only:  the one shard to make, by name: this is such a process, and who started it holds the claim
    """

    told: Told = lambda event, **details: None
    apart: Callable[[Path, Shard], None] | None = None
    only: str | None = None


def make_shards(
    path: Path,
    pool: Pool,
    make: Callable[[Shard, Care], None],
    failing: OnFailure,
    on_rows: Callable[[int], None],
    on_wait: Callable[[str], None],
    plan: ShardPlan | None = None,
) -> None:
    """Call `make` for every shard of `path` that is missing and that no other process makes; only for those in `plan`, if there is one."""

    def careful(shard: Shard) -> Care:
        def where(row: int) -> str:
            return pool.table(shard, ["where"])["where"][row - shard.start].as_py()

        name, trouble = str(path / shard.name), Trouble.of(path, shard)
        trouble.ended = {**_elsewhere(path, shard), **trouble.ended}
        return Care(name, where, MOST, failing.told, trouble, watched=failing.only is not None)

    if failing.only is not None:
        for shard in pool.plan.shards:
            if shard.name == failing.only:
                make(shard, careful(shard))
        return
    with closing(shards_to_make(path, plan or pool.plan, on_rows, on_wait)) as shards:
        for shard in shards:
            if failing.apart and Trouble.of(path, shard).deaths >= DEATHS:
                failing.apart(path, shard)
                on_rows(len(shard))
            else:
                make(shard, careful(shard))


def _elsewhere(path: Path, shard: Shard) -> dict[str, list[str]]:
    """What processes ended over when they made this shard of the run's other stores: those rows are in quarantine as it is."""
    folders = (folder for folder in sorted(path.parent.parent.glob("*/*")) if folder != path)
    notes = (shard_notes(folder, shard) or {} for folder in folders)
    return {rows: ends for found in notes for rows, ends in found.get("ended_processes", {}).items()}
