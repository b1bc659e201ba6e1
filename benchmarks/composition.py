"""What is a selection made of? Share of each value of a column in the pool and in the choice, with a hypergeometric p-value.

python benchmarks/composition.py RUN SELECTION --column skill --name gsm8k_composition
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from math import comb
from pathlib import Path

import pyarrow.parquet as pq

from record import write_result
from siftune.datastore.pool import Pool
from siftune.selection.selection import Selection


def at_least(n_pool: int, n_kind: int, n_chosen: int, n_found: int) -> float:
    """P(X >= n_found) where n_chosen of n_pool rows are drawn blindly and n_kind are of the kind."""
    upper = min(n_kind, n_chosen)
    ways = sum(comb(n_kind, k) * comb(n_pool - n_kind, n_chosen - k) for k in range(n_found, upper + 1))
    return ways / comb(n_pool, n_chosen)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("selections", nargs="+")
    arguments.add_argument("--column", default="skill")
    arguments.add_argument("--name", required=True)
    given = arguments.parse_args()
    pool = Pool(given.run / "pool")
    kinds: list[str] = []
    for shard in pool.plan.shards:
        rows = pool.table(shard, ["columns"])["columns"].to_pylist()
        kinds += [str(json.loads(columns).get(given.column)) for columns in rows]
    in_pool = Counter(kinds)
    results = {}
    for name in given.selections:
        selection = Selection.open(given.run / "selections" / name)
        scores = pq.read_table(selection.path / "scores.parquet", columns=["row", "selected"]).to_pydict()
        chosen = [kinds[row] for row, taken in zip(*scores.values(), strict=True) if taken]
        found = Counter(chosen)
        results[name] = {
            "settings": selection.settings,
            "n_pool": len(kinds),
            "n_selected": len(chosen),
            given.column: {
                kind: {
                    "pool": n,
                    "selected": found[kind],
                    "share_of_pool": round(n / len(kinds), 4),
                    "share_of_choice": round(found[kind] / len(chosen), 4),
                    "p_by_chance": float(f"{at_least(len(kinds), n, len(chosen), found[kind]):.3g}"),
                }
                for kind, n in in_pool.most_common()
            },
        }
    log = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
    stages = [{k: v for k, v in e.items() if k != "settings"} for e in log if e["event"] == "stage done"]
    print(write_result(given.name, {"selections": results, "stages": stages}))


if __name__ == "__main__":
    main()
