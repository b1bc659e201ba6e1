"""The choices that the tuning trainings compare, as files: directions, rules, checkpoints, whitening, the blend with rds+.

    python experiments/defaults/choices.py WORK

WORK/run-DIRECTION (directions.py) -> WORK/choices/TASK-ARM.jsonl, 100 pool rows each, in the order taken. An arm is `DIRECTION-CHECKPOINTS-RULE`, or
`whitened`: sgd at checkpoint 4 with (K/N + .01)^-1 before it, K the pool's own products (TAROT); `blend-DIRECTION`: with rds+; `family`: random gsm8k rows.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import TASKS
from siftune.datastore.index import read_index
from siftune.methods.blend import blended_influence
from siftune.methods.less import WeightedStore, less_influence
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import read_run_recipe
from siftune.pipeline.scoring import answer_of
from siftune.pipeline.session import Session
from siftune.selection.rules import order_of, scores_of
from siftune.selection.selection import may_be_chosen

COUNT, RIDGE = 100, 0.01


class Chooser:
    """Writes choices of a run of one direction."""

    def __init__(self, work: Path, direction: str):
        path = work / f"run-{direction}"
        recipe = read_run_recipe(path).with_settings({"keep": "5%"})
        self.session = Session(path, recipe, Reporter(quiet=True), recipe)
        self.out, self.index = work / "choices", read_index(path)

    def influence(self, task: str, checkpoints: list[int]) -> np.ndarray:
        """`influence_N_V`, checkpoints weighted alike."""
        stores = [WeightedStore(c, 1 / len(checkpoints), self.session.store(c)) for c in checkpoints]
        return less_influence(self.session.target(task), stores, centre=False)

    def whitened(self, task: str) -> np.ndarray:
        """As above at checkpoint 4, whitened."""
        store = self.session.store(4)
        features_N_D = np.concatenate([store.features(shard) for shard in store.plan.shards])
        n = len(features_N_D)
        ridge_N_N = features_N_D @ features_N_D.T / n + RIDGE * np.eye(n, dtype=np.float32)
        return np.linalg.solve(ridge_N_N, self.influence(task, [4])).astype(np.float32)

    def likeness(self, task: str) -> np.ndarray:
        """`influence_N_V` of rds+."""
        recipe = self.session.recipe.with_settings({"method": "rds+"})
        session = Session(self.session.path, recipe, self.session.reporter, recipe)
        found = answer_of(session, session.target(task)).influence_N_V
        assert found is not None
        return found

    def choose(self, task: str, arm: str, influence_N_V: np.ndarray, rule: str = "by-subtask") -> None:
        """Write the first rows by a rule."""
        scores = scores_of(influence_N_V, self.session.target(task).subtask_V, rule)  # pyright: ignore[reportArgumentType]
        may_N = may_be_chosen(self.index, scores.score_N, repeats=False)
        self.write(f"{task}-{arm}", order_of(scores, influence_N_V, rule, may_N)[:COUNT].tolist())  # pyright: ignore[reportArgumentType]

    def write(self, name: str, rows: list[int]) -> None:
        """Write pool rows as a selection names them."""
        self.out.mkdir(exist_ok=True)
        lines = [json.dumps({"_siftune": {"row": row}}) + "\n" for row in rows]
        (self.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main(work: Path) -> None:
    """Write all of them."""
    sgd = Chooser(work, "sgd")
    for direction in ("sgd", "adam", "adam-precond"):
        chooser = Chooser(work, direction)
        for task in TASKS:
            last = chooser.influence(task, [4])
            for rule in ("by-subtask", "round-robin", "top"):
                chooser.choose(task, f"{direction}-4-{rule}", last, rule)
            chooser.choose(task, f"{direction}-1-by-subtask", chooser.influence(task, [1]))
            chooser.choose(task, f"blend-{direction}", blended_influence(last, sgd.likeness(task)))
    for task in TASKS:
        sgd.choose(task, "whitened", sgd.whitened(task))
    family = np.flatnonzero(sgd.index["source"].to_numpy(zero_copy_only=False) == "gsm8k").tolist()
    random.Random(0).shuffle(family)
    sgd.write("gsm8k-family", family[:COUNT])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
