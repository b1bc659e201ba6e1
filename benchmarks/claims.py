"""What claiming shards adds to making them: seconds a shard of claim and release, beside those of its gradients.

    python benchmarks/claims.py --shards 500

The loop of a worker over shards of one byte, with claims and without. The cost of gradients is that of `results/engine.json`
(siftune r16 sgd). On a local disk: over a network each claim is a few round trips.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from clock import seconds_of
from record import RESULTS, write_result
from siftune.datastore.claims import shards_to_make
from siftune.datastore.plan import Shard, ShardPlan
from siftune.datastore.side_car import write_side_car
from siftune.records.recipe import Recipe

ARM = "siftune r16 sgd"


def make(folder: Path, shard: Shard) -> None:
    """The least that a shard is: a file and its side-car."""
    file = folder / f"{shard.name}.safetensors"
    file.write_bytes(b"x")
    write_side_car(file, shard.digest, {})


def main() -> None:
    take = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take.add_argument("--shards", type=int, default=500)
    take.add_argument("--rounds", type=int, default=5)
    given = take.parse_args()
    rows = Recipe.model_fields["shard_rows"].default
    shards = tuple(Shard(k, k * rows, (k + 1) * rows, f"{k}") for k in range(given.shards))
    plan = ShardPlan(shards, 2048, "", ())

    def plain() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for shard in shards:
                make(Path(folder), shard)

    def claimed() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for shard in shards_to_make(Path(folder), plan):
                make(Path(folder), shard)

    seconds = seconds_of({"plain": plain, "claimed": claimed}, given.rounds)
    of_claims = {
        clock: (seconds["claimed"][clock] - seconds["plain"][clock]) / given.shards
        for clock in ("cpu", "wall")
    }
    engine = json.loads((RESULTS / "engine.json").read_text(encoding="utf-8"))
    a_row = next(arm for arm in engine["arms"] if arm["name"] == ARM)["cpu_seconds_a_row"]["median"]
    values = {
        "shards": given.shards,
        "rounds": given.rounds,
        "rows_a_shard": rows,
        "seconds": seconds,
        "claim_seconds_a_shard": {clock: round(value, 5) for clock, value in of_claims.items()},
        "gradient_seconds_a_shard": round(a_row * rows, 1),
        "claims_over_gradients": {
            clock: round(value / (a_row * rows), 6) for clock, value in of_claims.items()
        },
    }
    print(json.dumps(values, indent=2))
    print(write_result("claims", values))


if __name__ == "__main__":
    main()
