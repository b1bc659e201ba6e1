"""What accuracy costs: how far projection, base dtype, stored dtype and number of checkpoints change cosines and choices.

OMP_NUM_THREADS=1 python benchmarks/accuracy.py RUN WORK          RUN: a finished run with direction sgd; it is only read

Exact gradients of a few pool and target rows on the run's model under its first checkpoint, all projections of the same gradients;
cosines on tiny models of other architectures; checkpoints and stored dtypes on all of the run's rows. Below twenty CPU minutes
with SmolLM2-135M. Stops and goes on at any moment: parts are kept in WORK.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from accuracy_exact import Rows, asked, gradients, projected
from accuracy_measures import (
    BYTES,
    RULES,
    Question,
    agreement,
    bytes_per_row,
    cosine_error,
    mean_agreement,
    stored,
)
from accuracy_tiny import ARCHITECTURES, tiny_errors
from record import write_result
from siftune.datastore.plan import Shard
from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, target_features
from siftune.model.checkpoint import list_checkpoints
from siftune.model.load import Dtype
from siftune.records.files import read_json, write_json
from siftune.records.recipe import Projection, read_recipe

NUMBERS = (1024, 2048, 4096, 8192)
FULL = NUMBERS[-1]
"""The default's D."""
SEEDS = 3
"""Sketches drawn at each D; the dense projection costs too much for more than one."""
FIRST = 1
"""The checkpoint of the exact gradients."""
SUBSETS = ((1,), (4,), (1, 2), (2, 4), (1, 2, 3, 4))
"""Checkpoints that are compared with all four."""


def main() -> None:
    arguments = asked(__doc__, pool_rows=160)
    arguments.add_argument("--tiny-rows", type=int, default=64)
    given = arguments.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(given.run, given.pool_rows, given.target_rows)

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = given.work / f"{name}.json"
        if not file.exists():
            write_json(file, make())
        return read_json(file)

    tiny = {
        arch: kept(
            f"tiny-{arch}", lambda arch=arch: tiny_errors(arch, given.tiny_rows, NUMBERS, SEEDS, given.work)
        )
        for arch in ARCHITECTURES
    }
    real = kept("real", lambda: on_exact(rows, given.work))
    many = kept("many", lambda: on_all_rows(given.run))
    sizes = {"pool_rows": rows.n_pool, "target_rows": {q.name: len(q.columns) for q in rows.questions}}
    values = {"rows": sizes, "tiny": tiny, "real": real, "all_rows": many, "table": table(real, many)}
    print(write_result("accuracy", values))


def on_exact(rows: Rows, work: Path) -> dict[str, Any]:
    """Projections, their numbers as stored, and the base in bf16, against exact gradients of an fp32 base."""
    found: dict[str, Any] = {"seconds": {}, "error": {}, "projection": {}, "stored": {}}
    exact: dict[Dtype, np.ndarray] = {}
    sizes: dict[str, int] = {}
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16")
    for dtype in dtypes:
        exact[dtype], notes = gradients(rows, dtype, FIRST, work)
        sizes, found["seconds"][f"gradients {dtype}"] = notes["sizes"], notes["seconds"]
    truth_N_V = rows.influence(exact["fp32"], exact["fp32"])
    found["coordinates"] = sum(sizes.values())
    found["bf16"] = {
        "cosine_to_fp32": round(float(np.einsum("np,np->n", exact["bf16"], exact["fp32"]).mean()), 5),
        **agreement(rows.influence(exact["bf16"], exact["bf16"]), truth_N_V, rows.questions),
    }
    for dtype in dtypes:
        exact_N_N = exact[dtype] @ exact[dtype].T
        for kind, n, seeds in _projections(dense=dtype == "fp32"):
            made = [
                projected(kind, n, seed, exact[dtype], sizes, work / f"real-{dtype}-{kind}-{n}-{seed}.npy")
                for seed in range(seeds)
            ]
            errors = [cosine_error(features, exact_N_N) for features, _ in made]
            found["error"].setdefault(f"{kind} {dtype}", {})[str(n)] = round(fmean(errors), 5)
            if dtype == "fp32":
                found["seconds"][f"{kind} {n}"] = round(fmean(seconds for _, seconds in made), 6)
                _compare(found, rows, kind, n, [features for features, _ in made], truth_N_V)
    return found


def _compare(
    found: dict[str, Any],
    rows: Rows,
    kind: Projection,
    n: int,
    drawn: list[np.ndarray],
    truth_N_V: np.ndarray,
) -> None:
    """Agreement of projected features with exact ones, and as each dtype stores the pool's; target rows stay fp32."""
    plain = [agreement(rows.influence(f, f), truth_N_V, rows.questions) for f in drawn]
    found["projection"][f"{kind} {n}"] = mean_agreement(plain)
    if kind == "sketch":
        for dtype in BYTES:
            with_exact, with_fp32 = [], []
            for f in drawn:
                kept_N_V = rows.influence(stored(f, dtype), f)
                with_exact.append(agreement(kept_N_V, truth_N_V, rows.questions))
                with_fp32.append(agreement(kept_N_V, rows.influence(f, f), rows.questions))
            found["stored"][f"{n} {dtype}"] = {
                "exact": mean_agreement(with_exact),
                "fp32": mean_agreement(with_fp32),
            }


def _projections(dense: bool = True) -> list[tuple[Projection, int, int]]:
    """Kind, D and how many are drawn."""
    sketches: list[tuple[Projection, int, int]] = [("sketch", n, SEEDS) for n in NUMBERS]
    return [*sketches, *(("rademacher", n, 1) for n in NUMBERS if dense)]


def on_all_rows(run: Path) -> dict[str, Any]:
    """Fewer checkpoints against all, other stored dtypes against the run's own, on every row and target of the run."""
    plan = Pool(run / "pool").plan
    weights = {checkpoint.number: checkpoint.weight for checkpoint in list_checkpoints(run)}
    targets = [Target.open(run / "targets" / name) for name in read_recipe(run / "recipe.yaml")["target"]]
    questions, last = [], 0
    for target in targets:
        columns = list(range(last, last + len(target.subtask_V)))
        questions.append(Question(target.name, columns, target.subtask_V))
        last = columns[-1] + 1
    own = read_recipe(run / "recipe.yaml")["store_dtype"]
    by_dtype: dict[str, dict[int, np.ndarray]] = {own: {}, "bf16": {}, "int8": {}}
    for number in weights:
        store = Datastore(run / "datastore" / "less" / str(number), plan)
        target_V_D = np.concatenate([target_features(target, number) for target in targets])
        for dtype, of in by_dtype.items():
            of[number] = np.concatenate(
                [_influence(store, shard, dtype, target_V_D) for shard in plan.shards]
            )
    sound_N = np.isfinite(sum(of_own.sum(axis=1) for of_own in by_dtype[own].values()))

    def total(dtype: str, numbers: tuple[int, ...]) -> np.ndarray:
        return sum((weights[k] * by_dtype[dtype][k] for k in numbers), np.float32(0))[sound_N]

    everything = tuple(weights)
    truth_N_V = total(own, everything)
    return {
        "rows": int(sound_N.sum()),
        "target_rows": {question.name: len(question.columns) for question in questions},
        "weights": {str(number): round(weight, 4) for number, weight in weights.items()},
        "stored_in": own,
        "checkpoints": {
            " ".join(map(str, numbers)): agreement(total(own, numbers), truth_N_V, questions)
            for numbers in SUBSETS
        },
        "stored": {
            dtype: agreement(total(dtype, everything), truth_N_V, questions)
            for dtype in by_dtype
            if dtype != own
        },
    }


def _influence(store: Datastore, shard: Shard, dtype: str, target_V_D: np.ndarray) -> np.ndarray:
    return stored(store.features(shard), dtype) @ target_V_D.T


def table(real: dict[str, Any], many: dict[str, Any]) -> list[dict[str, Any]]:
    """Cost against agreement, a line a choice: bytes a row (all four checkpoints) and CPU seconds relative to the defaults.

    `compared`: what it is compared with; the other settings of a line are the same on both sides.
    """
    seconds, default = real["seconds"], real["seconds"]["gradients bf16"] + real["seconds"][f"sketch {FULL}"]
    fp16 = bytes_per_row(FULL, "fp16")
    lines: list[dict[str, Any]] = []

    def line(choice: str, compared: str, row_bytes: int, cpu: float, found: dict[str, Any]) -> None:
        agree = {f"{what} {rule}": found[rule][what] for rule in RULES for what in ("spearman", "overlap")}
        lines.append(
            {"choice": choice, "compared": compared, "bytes": row_bytes, "cpu": round(cpu, 3), **agree}
        )

    line(
        "base in fp32, no projection",
        "itself",
        4 * bytes_per_row(real["coordinates"], "fp32"),
        seconds["gradients fp32"] / default,
        _same(),
    )
    line("base in bf16", "base in fp32, both exact", 4 * fp16, 1.0, real["bf16"])
    for kind, n, _ in _projections():
        cpu = (seconds["gradients bf16"] + seconds[f"{kind} {n}"]) / default
        line(f"{kind} {n}", "exact", 4 * bytes_per_row(n, "fp32"), cpu, real["projection"][f"{kind} {n}"])
    for name, found in real["stored"].items():
        n, dtype = name.split()
        cpu = (seconds["gradients bf16"] + seconds[f"sketch {n}"]) / default
        line(f"sketch {n} in {dtype}", "exact", 4 * bytes_per_row(int(n), dtype), cpu, found["exact"])
        line(
            f"sketch {n} in {dtype}", "the same in fp32", 4 * bytes_per_row(int(n), dtype), cpu, found["fp32"]
        )
    for dtype, found in many["stored"].items():
        line(
            f"all rows in {dtype}",
            f"all rows in {many['stored_in']}",
            4 * bytes_per_row(FULL, dtype),
            1.0,
            found,
        )
    for numbers, found in many["checkpoints"].items():
        part = len(numbers.split())
        line(f"checkpoints {numbers}", "all four", part * fp16, part / 4, found)
    return lines


def _same() -> dict[str, dict[str, float]]:
    return {rule: {"spearman": 1.0, "overlap": 1.0} for rule in RULES}


if __name__ == "__main__":
    main()
