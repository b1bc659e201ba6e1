"""The choices that the tuning trainings compare: directions, rules, centring, checkpoints, whitening, what goes with gradients; what they share.

    python experiments/defaults/choices.py WORK

WORK/run-DIRECTION (directions.py) -> WORK/choices/TASK-ARM.jsonl, 100 pool rows each, in the order taken, and results/choices.json. An arm is `DIRECTION-CHECKPOINTS-RULE`, or
`whitened`: sgd at checkpoint 4 with (K/N + .01)^-1 before it, K the pool's own products (TAROT); `pair-DIRECTION`: with rds+; `family`: random gsm8k rows.
`blend`: sgd under all checkpoints, rds+ and shared words, as `--method blend` has it; `pair`: without the words; `pair+embed`: with the model's mean states instead. Other ways to join the pair: `normal`: normal scores of their ranks added, so that tails count alike too; `normal2`: rds+ twice; `turns`: a row of one, a row of the other.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.special import ndtri

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HERE, TASKS, stamp
from siftune.datastore.index import read_index
from siftune.methods.blend import blended_influence, standardised
from siftune.methods.less import WeightedStore, less_influence
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.scoring import answer_of
from siftune.pipeline.session import Session
from siftune.records.recipe import Rule
from siftune.selection.rules import order_of, scores_of
from siftune.selection.selection import may_be_chosen

COUNT, RIDGE = 100, 0.01
REFERENCES = ("sgd-4-by-subtask", "rds+")


class Chooser:
    """Makes choices of a run of one direction."""

    def __init__(self, work: Path, direction: str):
        self.path = work / f"run-{direction}"
        recipe = read_run_recipe(self.path).with_settings({"keep": "5%"})
        self.session = Session(self.path, recipe, Reporter(quiet=True), recipe)
        self.index = read_index(self.path)

    def influence(self, task: str, checkpoint: int, *, centre: bool = False) -> np.ndarray:
        """`influence_N_V` under one checkpoint."""
        store = WeightedStore(checkpoint, 1.0, self.session.store(checkpoint))
        return less_influence(self.session.target(task), [store], centre=centre)

    def whitened(self, task: str) -> np.ndarray:
        """As above at checkpoint 4, whitened."""
        store = self.session.store(4)
        features_N_D = np.concatenate([store.features(shard) for shard in store.plan.shards])
        n = len(features_N_D)
        ridge_N_N = features_N_D @ features_N_D.T / n + RIDGE * np.eye(n, dtype=np.float32)
        return np.linalg.solve(ridge_N_N, self.influence(task, 4)).astype(np.float32)

    def by(self, method: str, task: str) -> np.ndarray:
        """`influence_N_V` of a method that needs no gradients."""
        recipe = self.session.recipe.with_settings({"method": method})
        session = Session(self.path, recipe, self.session.reporter, recipe)
        found = answer_of(session, session.target(task)).influence_N_V
        assert found is not None
        return found

    def less(self, task: str) -> np.ndarray:
        """`influence_N_V` under all checkpoints, weighted."""
        found = answer_of(self.session, self.session.target(task)).influence_N_V
        assert found is not None
        return found

    def choose(self, task: str, influence_N_V: np.ndarray, rule: Rule = "by-subtask") -> list[int]:
        """The first rows by a rule."""
        scores = scores_of(influence_N_V, self.session.target(task).subtask_V, rule)
        may_N = may_be_chosen(self.index, scores.score_N, repeats=False)
        return order_of(scores, influence_N_V, rule, may_N)[:COUNT].tolist()


def normal_scores(influence_N_V: np.ndarray) -> np.ndarray:
    """A column's ranks as the values that a normal distribution has there."""
    ranks_N_V = influence_N_V.argsort(axis=0).argsort(axis=0)
    return ndtri((ranks_N_V + 0.5) / len(influence_N_V)).astype(np.float32)


def turns(one: list[int], other: list[int]) -> list[int]:
    """The first of both, then the second of both, and so on, each row once."""
    both = [row for pair in zip(one, other, strict=True) for row in pair]
    return list(dict.fromkeys(both))[:COUNT]


def tail(influence_N_V: np.ndarray) -> float:
    """The largest value that a target row has in the pool, in deviations; mean over target rows."""
    return round(float(standardised(influence_N_V).max(axis=0).mean()), 3)


def choices(choosers: dict[str, Chooser], task: str) -> dict[str, list[int]]:
    """The arms of one task."""
    sgd, rules = choosers["sgd"], get_args(Rule)
    likeness_N_V = sgd.by("rds+", task)
    found = {"rds+": sgd.choose(task, likeness_N_V), "whitened": sgd.choose(task, sgd.whitened(task))}
    less_N_V = sgd.less(task)
    less_normal, likeness_normal = normal_scores(less_N_V), normal_scores(likeness_N_V)
    pair = [less_N_V, likeness_N_V]
    found["pair"] = sgd.choose(task, blended_influence(pair))
    found["blend"] = sgd.choose(task, blended_influence([*pair, sgd.by("bm25", task)]))
    found["pair+embed"] = sgd.choose(task, blended_influence([*pair, sgd.by("embed", task)]))
    found["normal"] = sgd.choose(task, less_normal + likeness_normal)
    found["normal2"] = sgd.choose(task, less_normal + 2 * likeness_normal)
    found["turns"] = turns(sgd.choose(task, less_N_V), found["rds+"])
    for direction, chooser in choosers.items():
        last = chooser.influence(task, 4)
        for rule in rules:
            found[f"{direction}-4-{rule}"] = chooser.choose(task, last, rule)
        found[f"{direction}-4-centred"] = chooser.choose(task, chooser.influence(task, 4, centre=True))
        found[f"{direction}-1-by-subtask"] = chooser.choose(task, chooser.influence(task, 1))
        found[f"pair-{direction}"] = chooser.choose(task, blended_influence([last, likeness_N_V]))
    if task == "gsm8k":
        family = np.flatnonzero(sgd.index["source"].to_numpy(zero_copy_only=False) == task).tolist()
        random.Random(0).shuffle(family)
        found["family"] = family[:COUNT]
    return found


def write_choice(work: Path, task: str, arm: str, rows: list[int]) -> Path:
    """Write the chosen rows' numbers, in the order taken, for worker.py; returns the file."""
    file = work / "choices" / f"{task}-{arm}.jsonl"
    file.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"_siftune": {"row": row}}) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def main(work: Path) -> None:
    """Write the files, and what the choices share and consist of; how long the tails of gradients (all checkpoints), likeness and words are."""
    choosers = {direction: Chooser(work, direction) for direction in ("sgd", "adam", "adam-precond")}
    source_N = choosers["sgd"].index["source"].to_pylist()
    checkpoints = sorted((choosers["sgd"].path / "checkpoints").glob("[0-9]*"))
    weights = {c.name: json.loads((c / "checkpoint.json").read_text())["weight"] for c in checkpoints}
    tasks = {}
    for task in TASKS:
        found = choices(choosers, task)
        for arm, rows in found.items():
            write_choice(work, task, arm, rows)
        shared = {
            one: {arm: len(set(rows) & set(found[one])) for arm, rows in found.items()} for one in REFERENCES
        }
        sources = {
            arm: dict(Counter(source_N[row] for row in rows).most_common()) for arm, rows in found.items()
        }
        n_trained_N = choosers["sgd"].index["n_trained"].to_numpy()
        trained = {arm: round(float(n_trained_N[rows].mean()), 2) for arm, rows in found.items()}
        sgd = choosers["sgd"]
        tails = {
            "less": tail(sgd.less(task)),
            "rds+": tail(sgd.by("rds+", task)),
            "bm25": tail(sgd.by("bm25", task)),
        }
        tasks[task] = {"shared": shared, "sources": sources, "trained_tokens": trained, "tails": tails}
        print(task, shared)
    result = {**stamp(), "rows": COUNT, "weights": weights, "tasks": tasks}
    out = HERE / "defaults" / "results" / "choices.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
