"""What each dtype of the datastore costs and keeps: bytes a row, and how much of the choice at 5 % is that of fp32.

    python benchmarks/store_dtypes.py RUN --work FOLDER --name store_dtypes_adam

RUN is a run with features and targets; it is only read. Where its store is fp32, that is the reference. Where it is of 16 bits, the reference is
made of it: to every number a random part of what rounding may have taken is given back, so that rounding it leads to the store again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from record import write_result
from siftune.datastore.features_writer import build_influence
from siftune.datastore.index import read_index
from siftune.datastore.manifest import claim
from siftune.datastore.plan import Shard
from siftune.datastore.quantise import quantised, restored, row_bytes
from siftune.datastore.shards import write_shard
from siftune.datastore.store import Datastore
from siftune.datastore.targets import Target, features_file, read_influence, target_features
from siftune.methods.less import WeightedStore
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.scoring import stores_of
from siftune.pipeline.session import Session
from siftune.records.files import write_json
from siftune.records.recipe import Recipe, Rule, StoreDtype
from siftune.selection.rules import order_of, scores_of
from siftune.selection.selection import may_be_chosen

DTYPES: tuple[StoreDtype, ...] = ("fp32", "fp16", "bf16", "int8")
RULES: tuple[Rule, ...] = ("top", Recipe().rule)
PART = 0.05
NEXT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half the distance to the next number, by a number's power of two."""


def reference_of(store: Datastore, shard: Shard) -> Tensor:
    """fp32 features of a shard that its stored ones may have come from."""
    tensors = store.tensors(shard)
    features_N_D, half = restored(tensors), NEXT.get(tensors["features"].dtype)
    if half is None:
        return features_N_D
    draw = torch.Generator().manual_seed(shard.number)
    power_N_D = torch.exp2(torch.floor(torch.log2(features_N_D.abs().clamp_min(2.0**-14))))
    return features_N_D + (torch.rand(features_N_D.shape, generator=draw) * 2 - 1) * half * power_N_D


def influence_in(
    folder: Path, given: Sequence[WeightedStore], targets: Sequence[Target], store_dtype: StoreDtype
) -> tuple[np.ndarray, float]:
    """Weighted influence on all targets' rows, side by side, with features kept in a dtype; CPU seconds of asking."""
    total_N_V, seconds = np.zeros(0), 0.0
    for number, weight, store in given:
        path = folder / store_dtype / str(number)
        claim(path / "manifest.json", {"method": "less"}, "the store", {})
        for shard in store.plan.shards:
            write_shard(path, shard, quantised(reference_of(store, shard), store_dtype), {})
        features_V_D = np.concatenate([target_features(target, number) for target in targets])
        everyone = _everyone(folder / "target" / store_dtype, number, features_V_D)
        began, kept = time.process_time(), Datastore(path, store.plan)
        build_influence(everyone, number, kept)
        seconds += time.process_time() - began
        weighted_N_V = np.float32(weight) * read_influence(everyone, number, kept)
        total_N_V = total_N_V + weighted_N_V if total_N_V.size else weighted_N_V
    return total_N_V, seconds


def _everyone(path: Path, number: int, features_V_D: np.ndarray) -> Target:
    """A target that has all targets' rows."""
    n = len(features_V_D)
    about = {"source": "", "digest": "", "fingerprint_V": [""] * n, "subtask_V": [""] * n}
    write_json(path / "target.json", {"name": "everyone", **about})
    target = Target.open(path)
    features_file(target, number).parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features_V_D}, features_file(target, number))
    return target


def main() -> None:
    """Measure every dtype on one run."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--work", type=Path)
    arguments.add_argument("--name", default="store_dtypes")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    recipe = read_run_recipe(given.run).with_settings({"method": "less"})
    session = Session(given.run, recipe, Reporter(quiet=True), recipe)
    stores, targets = stores_of(session), [session.target(name) for name in recipe.target]
    index, n_stored = read_index(given.run), len(stores) * session.pool.plan.n_rows
    choose = _chooser(targets, index)
    chosen, seconds = {}, {}
    for store_dtype in DTYPES:
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            influence_N_V, seconds[store_dtype] = influence_in(Path(folder), stores, targets, store_dtype)
        chosen[store_dtype] = choose(influence_N_V)
        print(store_dtype, round(seconds[store_dtype], 2), flush=True)
    found: list[dict[str, Any]] = []
    for store_dtype in DTYPES:
        overlap = {
            rule: {
                name: round(len(rows & chosen["fp32"][rule][name]) / len(rows), 4)
                for name, rows in of_rule.items()
            }
            for rule, of_rule in chosen[store_dtype].items()
        }
        found.append(
            {
                "store_dtype": store_dtype,
                "bytes": row_bytes(store_dtype, recipe.features),
                "overlap": overlap,
                "mean_overlap": {rule: round(fmean(of.values()), 4) for rule, of in overlap.items()},
                "cpu_ms_per_1000_rows": round(1e6 * seconds[store_dtype] / n_stored, 1),
            }
        )
    about = {
        "model": Path(recipe.model or "").name,
        "rows": session.pool.plan.n_rows,
        "checkpoints": len(stores),
        "features": recipe.features,
        "direction": recipe.direction,
        "stored_in": recipe.store_dtype,
        "part": PART,
        "target_rows": {target.name: len(target.subtask_V) for target in targets},
    }
    print(write_result(given.name, {**about, "dtypes": found}))


def _chooser(targets: list[Target], index: Any) -> Callable[[np.ndarray], dict[str, dict[str, set[int]]]]:
    """Turns influence on all targets' rows into the rows chosen, by rule and target."""

    def choose(influence_N_V: np.ndarray) -> dict[str, dict[str, set[int]]]:
        chosen: dict[str, dict[str, set[int]]] = {rule: {} for rule in RULES}
        ends = np.cumsum([len(target.subtask_V) for target in targets])[:-1]
        for target, of_target_N_V in zip(targets, np.split(influence_N_V, ends, axis=1), strict=True):
            for rule in RULES:
                scores = scores_of(of_target_N_V, target.subtask_V, rule)
                count = int(PART * np.isfinite(scores.score_N).sum())
                may_N = may_be_chosen(index, scores.score_N, repeats=False)
                order = order_of(scores, of_target_N_V, rule, may_N)
                chosen[rule][target.name] = set(order[:count].tolist())
        return chosen

    return choose


if __name__ == "__main__":
    main()
