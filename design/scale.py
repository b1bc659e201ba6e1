"""How many workers the ledger of files bears: a simulation of claims on a shared file system. `python design/scale.py` writes scale.json and
the tables of scale.md.

Workers make shards of one checkpoint. Before and after each they ask the file system, which answers so many small operations a second, one after
the other (a metadata server), and each of which takes its caller a round trip. What a worker asks at most:

    looks   one operation for every shard that it takes for missing, after each shard that it made     (`looks at all`)
    tries   from the front: HELD operations for every claim that another holds, until one is free       (`looks at all`)
    commit  claim, two files written aside, renamed and made lasting, claim removed: COMMIT operations; a touch of the claim every 20 s

and the ways to ask less, alone and together:

    own place     begin to try at a place of one's own: two held claims are met on the way, not all
    look ahead    look only at the shard that is tried next, not at all that are missing; with `own place`, what siftune/datastore/claims.py does
    batches       one claim for CLAIMED neighbouring shards
    by a scheduler     one process (Ray's driver) looks, once, and hands out numbers; a worker claims and commits
"""

from __future__ import annotations

import heapq
import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HELD, COMMIT, BEAT = 4, 12, 20.0
CLAIMED = 16
SPREAD = 0.15
"""Standard deviation of the seconds of a shard, as a part of them."""


@dataclass(frozen=True)
class Case:
    """rows: of the pool; row_seconds: of a worker; answers: operations a second; trip: seconds an operation takes its caller"""

    rows: int
    workers: int
    row_seconds: float
    shard_rows: int = 256
    looks: str = "all"  # all | ahead | scheduler
    place: str = "front"  # front | own
    batch: int = 1
    answers: float = 50_000.0
    trip: float = 0.0003

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)


def simulated(case: Case, seed: int = 0) -> dict[str, float]:
    """Hours of one checkpoint, the part of the workers' time that computes, operations in millions."""
    draw = random.Random(seed)
    left, held, operations, server_free, computed = case.shards, 0, 0.0, 0.0, 0.0
    asking = [(draw.random(), worker) for worker in range(case.workers)]
    heapq.heapify(asking)
    making: dict[int, int] = {}
    end = 0.0
    while asking:
        now, worker = heapq.heappop(asking)
        end = max(end, now)
        if worker in making:
            held -= making.pop(worker)
        if not left:
            continue
        taken = min(case.batch, left)
        tries = {"front": held / case.batch, "own": min(2.0, held / case.batch)}[case.place]
        if case.looks == "scheduler":
            asked = 1.0
        else:
            looks = left + held if case.looks == "all" else case.batch + tries
            asked = looks + HELD * tries
        seconds = sum(
            max(0.2, draw.gauss(1, SPREAD)) * case.row_seconds * case.shard_rows for _ in range(taken)
        )
        asked += COMMIT * taken + seconds / BEAT
        operations += asked
        server_free = max(server_free, now) + asked / case.answers
        answered = max(server_free, now + asked * case.trip)
        left -= taken
        held += taken
        making[worker] = taken
        computed += seconds
        heapq.heappush(asking, (answered + seconds, worker))
    return {
        "hours": round(end / 3600, 2),
        "computing": round(computed / (end * case.workers), 3),
        "million_operations": round(operations / 1e6, 1),
    }


def cost(rows: int, shard_rows: int, checkpoints: int = 4, features: int = 8192) -> dict[str, float]:
    """What a run of that size keeps: files, entries of one flat directory, bytes."""
    shards = -(-rows // shard_rows)
    row_bytes = features + 4 + 8 + 4 * 4  # int8, its scale, the row's number, four fp32 numbers
    return {
        "shards": shards,
        "files": shards * (1 + 2 * checkpoints + 2 * checkpoints),  # pool; features; influence on one target
        "entries_of_a_directory": 2 * shards,
        "datastore_tb": round(rows * row_bytes * checkpoints / 1e12, 2),
        "influence_of_100_target_rows_gb": round(rows * 100 * 4 * checkpoints / 1e9, 1),
        "plan_json_mb": round(shards * 90 / 1e6, 1),
    }


SIZES = ((1_000_000, 10), (10_000_000, 100), (100_000_000, 1000))
ROW_SECONDS = {"CPU core, 135M model": 0.32, "GPU, small model": 0.01}
"""The first is `siftune r16 sgd` of benchmarks/results/engine.json; the second an assumption: a parameter to set."""
WAYS = {
    "looks at all": {},
    "own place": {"place": "own"},
    "look ahead": {"looks": "ahead"},
    "own place, look ahead": {"place": "own", "looks": "ahead"},
    "4,096 rows a shard": {"shard_rows": 4096},
    "4,096 rows a shard, own place, look ahead": {"shard_rows": 4096, "place": "own", "looks": "ahead"},
    "batches of 16, own place, look ahead": {"batch": CLAIMED, "place": "own", "looks": "ahead"},
    "by a scheduler": {"looks": "scheduler", "place": "own"},
}


def tables(result: dict[str, Any]) -> list[str]:
    """The tables of scale.md: what a run keeps, then for each kind of worker what the ledger costs."""
    lines = [
        "| rows | rows a shard | shards | files | entries of one folder | datastore | influence on 100 target rows | `plan.json` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {of['rows'] / 1e6:.0f} M | {of['shard_rows']:,} | {of['shards']:,} | {of['files']:,} | {of['entries_of_a_directory']:,} "
        f"| {of['datastore_tb']} TB | {of['influence_of_100_target_rows_gb']:.0f} GB | {of['plan_json_mb']} MB |"
        for of in result["cost"]
    ]
    made = ["\n".join(lines)]
    for worker, row_seconds in ROW_SECONDS.items():
        sizes = " | ".join(f"{rows / 1e6:.0f} M rows, {workers:,} workers" for rows, workers in SIZES)
        lines = [f"| {worker}, {row_seconds} s a row | {sizes} |", "|---" * (len(SIZES) + 1) + "|"]
        for way in WAYS:
            cells = [
                f"{of['hours']:,.2f} h, {100 * of['computing']:.0f} %"
                for of in result["simulated"]
                if (of["way"], of["worker"]) == (way, worker)
            ]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        made.append("\n".join(lines))
    return made


def main() -> None:
    found = []
    for what, row_seconds in ROW_SECONDS.items():
        for rows, workers in SIZES:
            case = Case(rows, workers, row_seconds)
            for way, changes in WAYS.items():
                of_way = simulated(replace(case, **changes))
                found.append({"worker": what, "rows": rows, "workers": workers, "way": way, **of_way})
    result = {
        "command": "python design/scale.py",
        "operations_a_second": Case.answers,
        "seconds_of_a_trip": Case.trip,
        "row_seconds": ROW_SECONDS,
        "cost": [{"rows": r, "shard_rows": s, **cost(r, s)} for r in (10_000_000, 100_000_000) for s in (256, 4096)],
        "simulated": found,
    }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = Path(__file__).with_suffix(".md")
    found_tables = iter(tables(result))
    text = _TABLE.sub(lambda _: f"{next(found_tables)}\n", page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


_TABLE = re.compile(r"(^\|.*\n)+", re.MULTILINE)


if __name__ == "__main__":
    main()
