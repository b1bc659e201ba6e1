"""Train and measure single cells of a comparison from a queue, in as many processes as one starts; `compare` finds them there.

    OMP_NUM_THREADS=1 python experiments/worker.py RUN QUEUE

A line of QUEUE is `ARM SEED ROWS PART:TASK,…`: what the arm is called; the seed; its rows, which are a file with a selection's rows or with rows of any kind, a
method as `compare --methods` takes it (for the first task), `full` (in as many steps), `full-epochs` (gone through as often) or `untrained`; the parts of tests (beside RUN, parts.py) to measure. A line that a process took is
marked in QUEUE.claims.
Layers are compiled, three rows go through at once and attention is eager: the same sums in another order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import siftune.proof.train as training_room
from common import TRAINING
from siftune.model.warmup import Row, default_batch
from siftune.pipeline.arms import Test, chosen_rows
from siftune.pipeline.progress import Reporter
from siftune.pipeline.proving import Prover, Trained
from siftune.pipeline.rundir import anchored, read_run_recipe
from siftune.pipeline.session import Session
from siftune.proof.evaluate import LIKELIHOOD
from siftune.proof.train import Training
from siftune.records.example import Example
from siftune.records.readers import read_pool, read_target

ROWS = 100
_plain_warm_up = training_room.warm_up


def compiled_warm_up(base: Any, *rest: Any, **settings: Any) -> Any:
    """`warm_up` on compiled layers; `base` is as it was afterwards."""
    attention = base.config._attn_implementation
    base.set_attn_implementation("eager")
    for layer in base.model.layers:
        layer.compile(dynamic=True)
    try:
        return _plain_warm_up(base, *rest, **{**settings, "micro_batch": 3})
    finally:
        for layer in base.model.layers:
            layer._compiled_call_impl = None
        base.set_attn_implementation(attention)


class Worker:
    """Holds the run, the model and the tests."""

    def __init__(self, run: Path):
        recipe = anchored(read_run_recipe(run))
        self.work, self.session = run.parent, Session(run, recipe, Reporter(quiet=True), recipe)
        self.prover = Prover(self.session, None, LIKELIHOOD)
        self.recipe = recipe.with_settings({**TRAINING, "lora_targets": self.prover.lora_targets(None)})

    def test(self, name: str) -> Test:
        """A part of a task's test: `final:bbh`."""
        part, task = name.split(":")
        source = str(self.work / "parts" / part / f"{task}.jsonl")
        return Test(task, source, task, [row.example for row in read_target(source, task)])

    def trained(self, arm: str, seed: int, rows: str, target: str) -> Trained:
        """What a line asks to train, under the name that `compare` gives it."""
        if rows == "untrained":
            return self.prover.trained([], None, {"arm": rows, "keep": None, "seed": 0, "rows": 0})
        if rows in ("full", "full-epochs"):
            tokens, keep = self.prover.full_pool(), None
        elif Path(rows).is_file():
            tokens, keep = self.tokens_of(Path(rows)), "5%"
        else:
            tokens, keep = self.prover.tokens(chosen_rows(self.session, rows, "5%", target, seed)), "5%"
        n_rows = len(tokens) if rows == "full-epochs" else ROWS
        how = Training.of(self.recipe, n_rows=n_rows, batch=default_batch(ROWS), seed=seed)
        return self.prover.trained(tokens, how, {"arm": arm, "keep": keep, "seed": seed, "rows": len(tokens)})

    def tokens_of(self, file: Path) -> list[Row]:
        """Of a selection's rows by their numbers in the pool, of others by their text."""
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if all("_siftune" in line for line in lines):
            return self.prover.tokens([line["_siftune"]["row"] for line in lines])
        return self.prover.encoded(
            [row for row in read_pool([str(file)]) if isinstance(row, Example)], file.name
        )

    def work_on(self, line: str) -> None:
        """Train what isn't trained, measure what isn't measured."""
        arm, seed, rows, names = line.split()
        tests = [self.test(name) for name in names.split(",")]
        trained = self.trained(arm, int(seed), rows, tests[0].target)
        for name, test in zip(names.split(","), tests, strict=True):
            (cell,) = self.prover.cells(trained, [test])
            print(name, arm, seed, round(fmean(score.loss for score in cell.scores), 4), flush=True)  # pyright: ignore[reportAttributeAccessIssue]


def unclaimed(queue: Path) -> Iterator[str]:
    """Lines that no process has taken yet, those added meanwhile too."""
    while True:
        for line in filter(None, queue.read_text(encoding="utf-8").splitlines()):
            try:
                (queue.with_name(f"{queue.name}.claims") / line.replace("/", "_")).mkdir(parents=True)
            except FileExistsError:
                continue
            yield line
            break
        else:
            return


if __name__ == "__main__":
    torch._dynamo.config.cache_size_limit = 64  # pyright: ignore[reportAttributeAccessIssue]
    training_room.warm_up = compiled_warm_up
    worker = Worker(Path(sys.argv[1]))
    for line in unclaimed(Path(sys.argv[2])):
        worker.work_on(line)
