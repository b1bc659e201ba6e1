"""`siftune check`: predicted against measured loss change, batch by batch, at every checkpoint (`siftune.proof.first_order`).

    proof/check/CKPT/TARGET-DIGEST/00000.json   a batch: its pool rows, the target's loss before and after the step; kept for good
    proof/check.json                            the last check: settings, correlations, every point

A batch's rows follow from the seed and the batch's number, so they are the same at every checkpoint, more batches add to those
that are there, and a check that was cut off goes on. DIGEST is that of all that a measurement depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from transformers import PreTrainedModel

from siftune.datastore.features_writer import encode_target
from siftune.datastore.targets import Target, features_file, kept_rows, missing_influence, read_influence
from siftune.methods.less import WeightedStore, less_influence
from siftune.model.checkpoint import Checkpoint, list_checkpoints
from siftune.model.load import quiet_transformers
from siftune.model.lora import adapter_on
from siftune.model.precision import in_fp32
from siftune.pipeline.progress import Reporter
from siftune.pipeline.rundir import locked, read_run_recipe
from siftune.pipeline.session import Session
from siftune.pipeline.training import base_model, identity_of
from siftune.proof.agreement import Points, TargetCheck
from siftune.proof.first_order import Row, mean_loss, predicted_drop, stepped
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of, read_json, write_json

MAX_TARGET_ROWS = 64
MIN_BATCHES = 6
"""Of all orders of 5 batches the bootstrap calls 13 % significant, of 6 3 %."""


@dataclass(frozen=True)
class CheckResult:
    """What a check found; `path` (proof/check.json) holds the same."""

    path: Path
    settings: dict[str, Any]
    targets: list[TargetCheck]

    def as_values(self) -> dict[str, Any]:
        """As JSON values."""
        targets = [{**asdict(target), "sentence": target.sentence} for target in self.targets]
        return {"settings": self.settings, "targets": targets}


def check(
    path: Path | str,
    *,
    batches: int = 32,
    rows: int = 8,
    seed: int | None = None,
    targets: Sequence[str] = (),
    learning_rate: float | None = None,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Take the real optimizer step on random pool batches at every checkpoint of a run, and compare with what was predicted.

    batches:       random batches at each checkpoint
    rows:          pool rows a batch
    seed:          the run's where None
    targets:       all of the run's where empty; of a target with more than 64 rows, a random 64 are measured
    learning_rate: of the step; each checkpoint's own, the mean since the checkpoint before, where None
    Raises SiftuneError for a run without influence on these targets, or without a learning rate.
    """
    path = Path(path)
    recipe = read_run_recipe(path)
    names = list(dict.fromkeys(targets)) or list(recipe.target)
    _check_asked(path, names, batches=batches, rows=rows, seed=seed, learning_rate=learning_rate)
    settings: dict[str, Any] = {
        "batches": batches,
        "rows": rows,
        "seed": recipe.seed if seed is None else seed,
        "learning_rate": learning_rate,
        "direction": recipe.direction,
        "centre": recipe.centre,
        "dtype": recipe.dtype,
    }
    with locked(path):
        session = Session(path, recipe, reporter or Reporter(), recipe)
        session.log.event("check", targets=names, **settings)
        work = _Check(session, settings)
        asked = [[_Asked.of(work, name, checkpoint) for checkpoint in work.checkpoints] for name in names]
        work.measure([one for of_target in asked for one in of_target])
        result = CheckResult(
            path / "proof" / "check.json", settings, [work.compared(of_target) for of_target in asked]
        )
        write_json(result.path, result.as_values())
        return result


class _Check:
    """What all measurements of one check share."""

    def __init__(self, session: Session, settings: dict[str, Any]):
        self.session, self.settings = session, settings
        self.checkpoints = list_checkpoints(session.path)
        if not self.checkpoints:
            raise SiftuneError(
                "this run has no checkpoints",
                where=str(session.path),
                todo=f"Run 'siftune run --out {session.path}' first",
            )
        self.scorable_N = session.scorable()
        if settings["rows"] >= len(self.scorable_N):
            raise SiftuneError(
                f"the pool has {len(self.scorable_N)} usable rows: random batches of so many would be one and the same",
                where=f"rows: {settings['rows']}",
                todo="Give fewer rows a batch",
            )
        self.pool_digest = digest_of(
            [[shard.digest for shard in session.pool.plan.shards], self.scorable_N.tolist()]
        )

    def learning_rate(self, checkpoint: Checkpoint) -> float:
        rate = self.settings["learning_rate"] or checkpoint.mean_learning_rate
        if not rate:
            raise SiftuneError(
                f"checkpoint {checkpoint.number} does not say at which learning rate it was trained",
                where=str(checkpoint.path),
                todo="Give that of the steps: --learning-rate",
            )
        return rate

    def batch_rows(self, batch: int) -> np.ndarray:
        """The pool rows of a batch."""
        draw = np.random.default_rng([self.settings["seed"], 3, batch])
        return draw.choice(self.scorable_N, self.settings["rows"], replace=False)

    def target_rows(self, target: Target) -> np.ndarray:
        """The target's rows that are measured."""
        n = len(target.subtask_V)
        draw = np.random.default_rng([self.settings["seed"], 2])
        few = n <= MAX_TARGET_ROWS
        return np.arange(n) if few else np.sort(draw.choice(n, MAX_TARGET_ROWS, replace=False))

    def measure(self, asked: Sequence[_Asked]) -> None:
        """Make what is missing of the measurements. The model is loaded only if some are."""
        batches = range(self.settings["batches"])
        missing = {
            (checkpoint.number, batch): new
            for checkpoint in self.checkpoints
            for batch in batches
            if (new := [a for a in asked if a.checkpoint is checkpoint and not a.file(batch).exists()])
        }
        if not missing:
            return
        self.session.make_pool()  # which refuses another tokenizer than the run's
        tokens = {a.target.name: self._target_tokens(a) for new in missing.values() for a in new}
        base, total = self._base(), len(batches) * len(self.checkpoints)
        bar = self.session.reporter.bar("steps on random batches", total, "steps", total - len(missing))
        with in_fp32(base), bar as advance:
            for checkpoint in self.checkpoints:
                todo = {batch: new for (number, batch), new in missing.items() if number == checkpoint.number}
                if todo:
                    with self.session.log.stage(f"check {checkpoint.number}") as details:
                        for _ in self._steps(base, checkpoint, todo, tokens):
                            advance(1)
                        details |= {"steps": len(todo)}

    def _steps(
        self,
        base: PreTrainedModel,
        checkpoint: Checkpoint,
        todo: dict[int, list[_Asked]],
        tokens: dict[str, list[Row]],
    ) -> Iterator[int]:
        """Take the steps of one checkpoint; yields a batch's number when its measurements are on disk."""
        pool = self.session.pool
        with quiet_transformers(), adapter_on(base, checkpoint.path, trainable=False) as model:
            wanted = {a.target.name for new in todo.values() for a in new}
            before = {name: mean_loss(model, tokens[name], pool.plan.batch_tokens) for name in wanted}
            for batch, new in todo.items():
                row_B = self.batch_rows(batch)
                with stepped(
                    model,
                    checkpoint,
                    pool.tokens_of(row_B.tolist()),
                    learning_rate=self.learning_rate(checkpoint),
                    batch_tokens=pool.plan.batch_tokens,
                    gradient_checkpointing=self.session.recipe.gradient_checkpointing,
                ):
                    names = [a.target.name for a in new]
                    after = {name: mean_loss(model, tokens[name], pool.plan.batch_tokens) for name in names}
                for a in new:
                    a.keep(batch, row_B, before[a.target.name], after[a.target.name])
                yield batch

    def _base(self) -> PreTrainedModel:
        """The run's base model; told where it can't compute in fp32: 16 bits round the loss by as much as a step moves it."""
        base = base_model(self.session)
        if getattr(base.config, "quantization_config", None) is not None:
            self.session.reporter.warn(
                "a quantised base does not compute in fp32: its rounding may hide the drops, so little agreement says little"
            )
        return base

    def _target_tokens(self, asked: _Asked) -> list[Row]:
        target, row_V = asked.target, asked.row_V
        tokens = encode_target(kept_rows(target), self.session.encoder)
        if len(row_V) < len(tokens.row_N):
            self.session.reporter.note(
                f"target {target.name}: the loss is measured on {len(row_V)} of its {len(tokens.row_N)} rows"
            )
        return [(tokens.token_ids[v], tokens.trained[v]) for v in row_V]

    def compared(self, asked: list[_Asked]) -> TargetCheck:
        """Measurements of one target beside what the datastore predicted."""
        target, row_V = asked[0].target, asked[0].row_V
        each = [self._points(a) for a in asked]
        overall = Points.summed(each, [checkpoint.weight for checkpoint in self.checkpoints])
        return TargetCheck(target.name, len(row_V), len(target.subtask_V), each, overall)

    def _points(self, asked: _Asked) -> Points:
        target, row_V, number = asked.target, asked.row_V, asked.checkpoint.number
        store, rate = self.session.store(number), self.learning_rate(asked.checkpoint)
        cosine_N_V = read_influence(target, number, store)[:, row_V]
        weighted = [WeightedStore(number, 1.0, store)]
        used_N_V = less_influence(target, weighted, centre=self.session.recipe.centre)[:, row_V]
        direction_norm_N = store.numbers("direction_norm")
        grad_norm_V = load_file(features_file(target, number))["grad_norm"][row_V]
        points: list[tuple[float, float, float]] = []
        for batch in range(self.settings["batches"]):
            kept = read_json(asked.file(batch))
            row_B = kept["rows"]
            predicted = predicted_drop(cosine_N_V[row_B], direction_norm_N[row_B], grad_norm_V, rate)
            used = float(used_N_V[row_B].mean(dtype=np.float64))
            points.append((predicted, used, kept["before"] - kept["after"]))
        return Points.of(number, rate, *np.array(points, np.float64).T)


@dataclass(frozen=True)
class _Asked:
    """One target at one checkpoint: which of the target's rows are measured, and where the batches are kept."""

    target: Target
    checkpoint: Checkpoint
    row_V: np.ndarray
    folder: Path

    @classmethod
    def of(cls, work: _Check, name: str, checkpoint: Checkpoint) -> _Asked:
        """SiftuneError where the prediction isn't in the run, or the checkpoint is not the one it was made at."""
        session, number = work.session, checkpoint.number
        target, store = session.target(name), session.store(number)
        if (
            store.missing()
            or not features_file(target, number).exists()
            or missing_influence(target, number, store)
        ):
            raise SiftuneError(
                f"the influence on {name!r} at checkpoint {number} is not made yet",
                where=str(session.path),
                todo=f"Run 'siftune run --out {session.path}' to finish it",
            )
        identity = identity_of(checkpoint)
        if store.manifest["checkpoint"] != identity:
            raise SiftuneError(
                "is not the checkpoint that the datastore was made at",
                where=str(checkpoint.path),
                todo="Put its files back, or start a new run",
            )
        row_V = work.target_rows(target)
        depends_on = {
            "checkpoint": identity,
            "learning_rate": work.learning_rate(checkpoint),
            "model": store.manifest["model"],
            "dtype": store.manifest["dtype"],
            "pool": work.pool_digest,
            "target": target.digest,
            "target_rows": row_V.tolist(),
            "rows": work.settings["rows"],
            "seed": work.settings["seed"],
        }
        folder = session.path / "proof" / "check" / str(number) / f"{name}-{digest_of(depends_on)[:12]}"
        return cls(target, checkpoint, row_V, folder)

    def file(self, batch: int) -> Path:
        return self.folder / f"{batch:05d}.json"

    def keep(self, batch: int, row_B: np.ndarray, before: float, after: float) -> None:
        """Write a measurement; SiftuneError where a loss is not a number."""
        if not (np.isfinite(before) and np.isfinite(after)):
            raise SiftuneError(
                f"the loss on {self.target.name!r} is {before:g} before and {after:g} after a step on the pool rows"
                f" {', '.join(map(str, row_B))}",
                where=str(self.checkpoint.path),
                todo="Give a smaller --learning-rate",
            )
        write_json(self.file(batch), {"rows": row_B.tolist(), "before": before, "after": after})


def _check_asked(
    path: Path,
    names: list[str],
    *,
    batches: int,
    rows: int,
    seed: int | None,
    learning_rate: float | None,
) -> None:
    """What can be known before any work."""
    if not names:
        raise SiftuneError(
            "this run has no target yet",
            where=str(path),
            todo="Add one: 'siftune score RUN --target NAME=FILE'",
        )
    if batches < MIN_BATCHES:
        raise SiftuneError(
            "so few batches say nothing about a correlation",
            where=f"batches: {batches}",
            todo=f"Give at least {MIN_BATCHES}, better 32",
        )
    if rows < 1:
        raise SiftuneError("a batch needs a row", where=f"rows: {rows}", todo="Give at least 1")
    if seed is not None and seed < 0:
        raise SiftuneError("is no seed", where=f"seed: {seed}", todo="Give 0 or more")
    if learning_rate is not None and not 0 < learning_rate < np.inf:
        raise SiftuneError(
            "is no learning rate", where=f"learning_rate: {learning_rate:g}", todo="Give a number above 0"
        )
