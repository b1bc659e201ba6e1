"""What a run will cost before it is spent: what is left to do, counted exactly, times what a few probe batches took.

Rows, tokens, batches and bytes follow from the pool and the settings alone (`siftune.pipeline.remaining`). Time and memory are
measured (`siftune.pipeline.probing`) and fitted (`siftune.pipeline.estimate`). A plan writes nothing into a run directory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from siftune.datastore.plan import Shard
from siftune.datastore.pool import TokenRows
from siftune.datastore.quantise import row_bytes
from siftune.model.adopt import checkpoint_folders
from siftune.model.checkpoint import list_checkpoints
from siftune.model.hidden import state_size
from siftune.model.sentence import SentenceEncoder
from siftune.model.warmup import LoraSettings
from siftune.pipeline.estimate import Load, Plan, StagePlan, fit_rate, peak_bytes
from siftune.pipeline.machine import device_of, pin, settled, threads_of_shards
from siftune.pipeline.plan_text import plan_lines
from siftune.pipeline.probing import (
    Batch,
    Given,
    Probed,
    Tokens,
    feature_pass,
    held_bytes,
    influence_seconds,
    measure,
    probe_batches,
    state_pass,
    training_step,
    undisturbed,
)
from siftune.pipeline.progress import Reporter
from siftune.pipeline.remaining import Remaining, remaining
from siftune.pipeline.rundir import anchored, merged, read_run_recipe
from siftune.pipeline.session import Session
from siftune.pipeline.stages import Stage
from siftune.pipeline.training import base_model, load_base, memory_told
from siftune.records.errors import SiftuneError
from siftune.records.log import read_events
from siftune.records.recipe import Recipe

SHARD_EXTRA, INFLUENCE_EXTRA = 620, 310
"""Bytes of a shard of features or influence beside its numbers: header and side-car."""
CHECKPOINT_EXTRA, PARAMETER_EXTRA = 1700, 400
"""Bytes of a checkpoint beside its numbers: JSON, and the headers' entries for a parameter and its moments."""


def plan(
    recipe: Recipe,
    out: Path | None = None,
    *,
    until: Stage = "selection",
    price_per_hour: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """What `run(recipe, out, until=until)` would cost; where `out` is a run already, what is left of it.

    A pool that no run has read is read and encoded whole, into a temporary folder.
    """
    reporter, asked = reporter or Reporter(), anchored(recipe)
    if out is not None and (out / "recipe.yaml").exists():
        recorded = read_run_recipe(out)
        session = Session(out, merged(recorded, asked), reporter, recorded)
        return plan_of(session, _target_tokens(session), until, price_per_hour=price_per_hour)
    if asked.model is None or not asked.pool:
        what, flag = ("model", "--model M") if asked.model is None else ("pool", "--pool FILE …")
        raise SiftuneError(f"no {what} is given", where=what, todo=f"Give {flag}, or a run directory")
    resolved, notes = settled(asked)
    for note in notes:
        reporter.note(note)
    with tempfile.TemporaryDirectory(prefix="siftune-plan-") as folder:
        session = Session(Path(folder), resolved, reporter, None)
        targets = _target_tokens(session)
        began = time.perf_counter()
        session.make_pool()
        return plan_of(
            session,
            targets,
            until,
            read_in=time.perf_counter() - began,
            place=out or Path(),
            price_per_hour=price_per_hour,
        )


def plan_of(
    session: Session,
    targets: Mapping[str, TokenRows],
    until: Stage,
    *,
    base: Callable[[], PreTrainedModel] | None = None,
    read_in: float | None = None,
    place: Path | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """The plan of a run whose pool was read.

    base:    gives the model, where the work needs it; by default it is loaded
    read_in: seconds that reading the pool took, where that is part of the plan
    place:   where the run will be, to look at its disk; default the session's folder
    """
    left, recipe = remaining(session, targets, until), session.recipe
    stages: list[StagePlan] = []
    if read_in is not None:
        size = sum(file.stat().st_size for file in (session.path / "pool").rglob("*") if file.is_file())
        stages.append(
            StagePlan(
                "pool",
                "reading the pool",
                left.pool.n_rows,
                left.pool.n_tokens,
                read_in,
                read_in,
                read_in,
                size,
            )
        )
    costs = _Costs(session, left, {name: len(tokens.row_N) for name, tokens in targets.items()})
    stages += costs.stages(base or (lambda: load_base(recipe, session.reporter)))
    free_at = (place or session.path).absolute()
    while not free_at.exists():
        free_at = free_at.parent
    return Plan(
        method=recipe.method,
        checkpoints=left.checkpoints,
        pool={
            "rows": left.pool.n_rows,
            "usable": len(left.pool.row_N),
            "tokens": left.pool.n_tokens,
            "trained_tokens": left.pool.n_trained,
        },
        targets=costs.n_target,
        stages=stages,
        memory_bytes=costs.memory,
        disk_free_bytes=shutil.disk_usage(free_at).free,
        price_per_hour=price_per_hour,
        rests_on={
            "probe_batches": costs.n_probes,
            "probe_seconds": round(costs.seconds, 2),
            "device": recipe.device,
            "threads": recipe.threads,
            "workers": recipe.workers,
            "dtype": recipe.dtype,
        },
    )


def told_plan(session: Session, targets: Mapping[str, TokenRows], until: Stage) -> Plan | None:
    """Say what a run has before it, and keep it in the log.

    None where no model has to pass over the pool, nobody looks, or a probe batch fails: what comes of such a row is decided where
    it is computed for good (`siftune.datastore.careful`), not by an estimate.
    """
    left = remaining(session, targets, until)
    if session.reporter.quiet or not (left.warmup.rows or left.feature_shards or left.vector_shards):
        return None
    if _ended_over_a_plan(session):
        session.reporter.note("no estimate: an earlier command on this run ended while it was made")
        return None
    try:
        with session.log.stage("plan") as details:
            found = plan_of(session, targets, until, base=lambda: base_model(session))
            details["plan"] = found.as_values()
    except SiftuneError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        session.reporter.note("no estimate: memory does not hold a probe batch (such are made in halves)")
        return None
    except Exception as error:
        session.reporter.note(f"no estimate: a probe batch failed ({type(error).__name__}: {error})")
        return None
    for line in plan_lines(found):
        session.reporter.note(line)
    return found


def _ended_over_a_plan(session: Session) -> bool:
    """Did a process end inside this stage, without a word?"""
    events = [event for event in read_events(session.log.path) if event.get("stage") == "plan"]
    return bool(events) and events[-1].get("event") == "stage began"


def _target_tokens(session: Session) -> dict[str, TokenRows]:
    return {name: read.tokens for name, read in session.read_targets(session.recipe.target).items()}


def _adapter(session: Session) -> LoraSettings | Path:
    """An adapter like those that the run's features are taken under."""
    recipe = session.recipe
    if made := list_checkpoints(session.path):
        return made[0].path
    if recipe.adopt:
        return checkpoint_folders(Path(recipe.adopt))[0]
    if recipe.adapter:
        return Path(recipe.adapter)
    return LoraSettings(recipe.rank, recipe.alpha, recipe.dropout, tuple(recipe.lora_targets))


class _Costs:
    """Probes what the remaining work needs, and turns it into stages.

    memory:   peak in bytes, None where no model is needed; n_probes, seconds: batches that were run, and how long all took
    """

    def __init__(self, session: Session, left: Remaining, n_target: dict[str, int]):
        self.session, self.recipe, self.left, self.n_target = session, session.recipe, left, n_target
        self.device = device_of(session.recipe)
        self.baseline = 0
        self.memory: int | None = None
        self.width = session.recipe.features
        self.n_probes, self.seconds = 0, 0.0

    def stages(self, base: Callable[[], PreTrainedModel]) -> list[StagePlan]:
        """What is left, stage by stage. `base` gives the model and is asked only where it is needed."""
        left, stages = self.left, list[StagePlan]()
        by_encoder = bool(self.recipe.encoder) and not self.session.by_position()
        pin(self.recipe)
        states = left.vectors.rows and not by_encoder
        model = base() if left.warmup.rows or left.features.rows or states else None
        began = time.perf_counter()
        with undisturbed(model, self.device), memory_told(self.session):
            self.baseline = held_bytes(self.device)
            if left.warmup.rows and model is not None:
                stages.append(self._warmup(model))
            if left.features.rows and model is not None:
                stages.append(self._features(model))
            if left.vectors.rows:
                stages.append(self._by_encoder() if by_encoder or model is None else self._by_states(model))
            if left.influence:
                stages.append(self._influence())
        self.seconds = time.perf_counter() - began
        return stages

    def _warmup(self, base: PreTrainedModel) -> StagePlan:
        load, recipe = self.left.warmup, self.recipe
        with training_step(base, _adapter(self.session), recipe) as (run, sizes):
            probed = self._measured(run, self._tokens, load, lambda length: self.left.micro_batch)
        numbers = 12 * sum(sizes.values())  # the weights and two moments, fp32
        disk = self.left.checkpoints * (numbers + CHECKPOINT_EXTRA + PARAMETER_EXTRA * len(sizes))
        what = "adopting checkpoints" if recipe.adopt else f"warm-up, {_times(recipe.epochs, 'epoch')}"
        return StagePlan.at_rate("warmup", what, load, fit_rate(probed.measured), disk, probed.setup)

    def _features(self, base: PreTrainedModel) -> StagePlan:
        left, recipe = self.left, self.recipe
        with (
            threads_of_shards(recipe),
            feature_pass(base, _adapter(self.session), recipe) as (run, sizes),
        ):
            probed = self._measured(run, self._tokens, left.features, self._rows_in_a_batch)
        d = self.width = sum(sizes.values()) if recipe.projection == "none" else recipe.features
        each = row_bytes(recipe.store_dtype, d) + 24  # the row's number and four fp32 beside it
        of_targets = left.stores * sum(self.n_target.values()) * (4 * d + 16)
        what = f"gradients, {_times(left.stores, 'checkpoint')}"
        return StagePlan.at_rate(
            "datastore",
            what,
            left.features,
            fit_rate(probed.measured),
            _stored(left.feature_shards, each) + of_targets,
            probed.setup * left.stores,
        ).shared(recipe.workers or 1)

    def _by_states(self, base: PreTrainedModel) -> StagePlan:
        run = state_pass(base, "position" if self.session.by_position() else "mean")
        with threads_of_shards(self.recipe):
            probed = self._measured(run, self._tokens, self.left.vectors, self._rows_in_a_batch)
        return self._vectors(probed, state_size(base)).shared(self.recipe.workers or 1)

    def _by_encoder(self) -> StagePlan:
        """Texts are cut and padded by the encoder's own tokens; the run's stand for them."""
        assert self.recipe.encoder is not None
        encoder = SentenceEncoder(Path(self.recipe.encoder), self.device)

        def run(texts: list[str]) -> None:
            encoder(texts)

        def texts(batch: Batch) -> tuple[list[str], list[int]]:
            return self.session.pool.texts_of(np.array(sorted(batch))), self._lengths(batch)

        probed = self._measured(run, texts, self.left.vectors, self._rows_in_a_batch)
        return self._vectors(probed, encoder.model.config.hidden_size)

    def _vectors(self, probed: Probed, width: int) -> StagePlan:
        disk = _stored(self.left.vector_shards, 4 * width + 8) + 4 * width * sum(self.n_target.values())
        what = f"vectors of {self.session.vectors_name()}"
        rate = fit_rate(probed.measured)
        return StagePlan.at_rate("vectors", what, self.left.vectors, rate, disk, probed.setup)

    def _influence(self) -> StagePlan:
        left = self.left.influence
        rows = sum(len(shard) for shard, _ in left)
        seconds = rows * influence_seconds(self.width, max(n for _, n in left))
        disk = sum(4 * n * len(shard) + INFLUENCE_EXTRA for shard, n in left)
        what = f"influence on {_times(sum(self.n_target.values()), 'target row')}"
        return StagePlan("influence", what, rows, 0, seconds, seconds / 2, seconds * 2, disk)

    def _measured(
        self,
        run: Callable[[Given], None],
        prepare: Callable[[Batch], tuple[Given, list[int]]],
        work: Load,
        full: Callable[[int], int],
    ) -> Probed:
        batches = probe_batches(self.left.pool.length_N, self.left.pool.row_N, full)
        probed = measure(run, batches, prepare, work, self.device, self.baseline)
        self.n_probes += len(probed.measured)
        peak = self.baseline + peak_bytes(probed.measured, work.largest)
        self.memory = max(self.memory or 0, peak)
        return probed

    def _tokens(self, batch: Batch) -> tuple[Tokens, list[int]]:
        found = self.session.pool.tokens_of(batch)
        # copies: what the pool gives is read-only memory
        return [(ids.astype(np.int64), trained.copy()) for ids, trained in found], self._lengths(batch)

    def _lengths(self, batch: Batch) -> list[int]:
        pool = self.left.pool
        return pool.length_N[np.searchsorted(pool.row_N, batch)].tolist()

    def _rows_in_a_batch(self, length: int) -> int:
        return max(1, self.session.pool.plan.batch_tokens // length)


def _stored(shards: list[Shard], row_bytes: int) -> int:
    return sum(len(shard) * row_bytes + SHARD_EXTRA for shard in shards)


def _times(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
