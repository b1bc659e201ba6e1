"""The stages that need the model: checkpoints (warm-up or adoption), datastore, influence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from siftune.chat.batches import pad_batch
from siftune.datastore.features_writer import build_datastore, build_influence, build_target_features
from siftune.datastore.manifest import claim, versions
from siftune.datastore.plan import ShardPlan
from siftune.datastore.pool import TokenRows
from siftune.datastore.shards import shard_notes
from siftune.datastore.targets import Target, features_file, has_numbers, missing_influence
from siftune.gradients.directions import AdamState
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import Projector, make_projector
from siftune.model.adopt import adopt
from siftune.model.checkpoint import ADAM, ADAPTER, CONFIG, Checkpoint, list_checkpoints
from siftune.model.identity import model_digest
from siftune.model.load import load_model, quiet_transformers
from siftune.model.lora import adapted_layers, adapter_on, add_lora, lora_parameters
from siftune.model.probe import mean_gradients
from siftune.model.warmup import LoraSettings, default_batch, warm_up, warmup_rows
from siftune.pipeline.apart import on_failure
from siftune.pipeline.crew import Crew
from siftune.pipeline.machine import device_of, pin, threads_of_shards
from siftune.pipeline.progress import Reporter
from siftune.pipeline.session import Session
from siftune.pipeline.stages import WARM_UP, gradients_title
from siftune.records.errors import SiftuneError
from siftune.records.files import read_json, sha256_of
from siftune.records.recipe import Recipe

PROBE_ROWS = 32
"""Pool rows whose mean gradient probes the order of adopted moments."""


def make_checkpoints(session: Session) -> None:
    """Train or adopt `RUN/checkpoints`, unless they are there."""
    found = list_checkpoints(session.path)
    if not found:
        with session.log.stage("warmup") as details:
            found = _adopted(session) if session.recipe.adopt else _warmed_up(session)
            details |= {"checkpoints": len(found), "weights": [round(c.weight, 4) for c in found]}
        weights = ", ".join(f"{checkpoint.weight:.3f}" for checkpoint in found)
        session.reporter.note(f"{len(found)} checkpoints, weights {weights}")
    session.update_index()
    config = read_json(found[0].path / "adapter_config.json")
    made = {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "lora_targets": adapted_layers(found[0].path),
    }
    session.recipe = session.recipe.with_settings(made)
    session.save_recipe(checkpoints=[identity_of(checkpoint) for checkpoint in found])


def make_features(session: Session, targets: Mapping[str, tuple[Target, TokenRows]], crew: Crew) -> None:
    """Make what is missing of the features of the pool and of the targets under every checkpoint."""
    pool = session.pool
    checkpoints = list_checkpoints(session.path)
    before = len(session.scorable())
    for checkpoint in checkpoints:
        number, path = checkpoint.number, session.store_path(checkpoint.number)
        rows = sum(len(shard) for shard in pool.plan.shards if shard_notes(path, shard) is None)
        new = [t for t in targets.values() if not has_numbers(t[0], features_file(t[0], number), path)]
        if not rows and not new:
            continue
        with (
            session.log.stage(f"datastore {number}") as details,
            feature_extractor(session, checkpoint) as extractor,
        ):
            title = gradients_title(number, len(checkpoints))
            if rows:
                with session.reporter.bar(
                    title, pool.plan.n_rows, "rows", pool.plan.n_rows - rows
                ) as advance:
                    make_pool_features(session, number, extractor, crew.watching(advance, rows))
            for target, tokens in new:
                session.reporter.note(f"{title}: {len(tokens.row_N)} rows of target {target.name}")
                told = on_failure(session).told
                build_target_features(
                    target, tokens, number, session.store(number), extractor, pool.plan.batch_tokens, told
                )
            details |= {"rows": rows, "targets": [target.name for target, _ in new]}
    session.update_index()
    if lost := before - len(session.scorable()):
        session.reporter.warn(f"{lost} rows have no usable gradient; see {session.path / 'quarantine.jsonl'}")


def make_pool_features(
    session: Session,
    checkpoint: int,
    extractor: FeatureExtractor,
    on_rows: Callable[[int], None],
    only: str | None = None,
    plan: ShardPlan | None = None,
) -> None:
    """Make what is missing of the pool's features, or of those shards in `plan`, under one checkpoint, beside other workers.

    only: that shard, for a process apart: who started it holds its claim
    """
    build_datastore(
        session.store_path(checkpoint),
        session.pool,
        extractor,
        direction=session.recipe.direction,
        store_dtype=session.recipe.store_dtype,
        on_rows=on_rows,
        on_wait=session.reporter.note,
        failing=on_failure(session, only),
        plan=plan,
    )


def make_influence(session: Session, targets: Mapping[str, tuple[Target, TokenRows]]) -> None:
    """Make what is missing of the pool's influence on the targets."""
    for checkpoint in list_checkpoints(session.path):
        store = session.store(checkpoint.number)
        for target, _ in targets.values():
            if missing_influence(target, checkpoint.number, store):
                with session.log.stage(f"influence {target.name} {checkpoint.number}"):
                    build_influence(target, checkpoint.number, store)


def _warmed_up(session: Session) -> list[Checkpoint]:
    recipe, pool = session.recipe, session.pool
    rows = session.warmup_rows()
    if rows is None:
        rows = session.decide_warmup_rows(
            warmup_rows(session.scorable(), fraction=recipe.warmup_fraction, seed=recipe.seed)
        )
    batch = recipe.batch or default_batch(len(rows))
    session.recipe = recipe.with_settings({"batch": batch})
    session.save_recipe()
    tokens = pool.tokens_of(rows)
    longest = max(len(ids) for ids, _ in tokens)
    lora = LoraSettings(recipe.rank, recipe.alpha, recipe.dropout, tuple(recipe.lora_targets))
    if not recipe.adapter:
        _check_captured(session, lora, tokens)
    steps = -(-len(rows) // batch) * recipe.epochs
    session.reporter.note(
        f"warm-up: {len(rows)} rows, {recipe.epochs} epochs, batches of {batch}, {steps} steps"
    )
    with session.reporter.bar(WARM_UP, steps, "steps") as advance:
        seen = [0]

        def on_progress(step: int, total: int, loss: float, learning_rate: float) -> None:
            session.log.event("warm-up step", step=step, of=total, loss=loss, learning_rate=learning_rate)
            advance(step - seen[0])
            seen[0] = step

        return warm_up(
            base_model(session),
            tokens,
            session.path / "checkpoints",
            seed=recipe.seed,
            epochs=recipe.epochs,
            batch=batch,
            learning_rate=recipe.learning_rate,
            lora=Path(recipe.adapter) if recipe.adapter else lora,
            micro_batch=max(1, pool.plan.batch_tokens // longest),
            gradient_checkpointing=recipe.gradient_checkpointing,
            on_progress=on_progress,
        )


def _check_captured(
    session: Session, lora: LoraSettings, tokens: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Take the gradient of the two shortest rows, so that an adapter that can't serve is refused before the warm-up is paid for."""
    model = add_lora(
        base_model(session),
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        seed=0,
    )
    try:
        sizes = {name: parameter.numel() for name, parameter in lora_parameters(model).items()}
        extractor = FeatureExtractor(model, make_projector("sketch", sizes, 64, 0), None)
        ids_B_T, trained_B_T, _ = pad_batch(sorted(tokens, key=lambda row: len(row[0]))[:2], pad_id=0)
        with quiet_transformers():
            extractor(ids_B_T, trained_B_T, "sgd")
        if extractor.unreached:
            raise SiftuneError(
                f"text never comes to {len(extractor.unreached)} of the layers that would be trained, {extractor.unreached[0]} among them"
                " (a model that sees has such ones)",
                where="lora_targets",
                todo="Name layers of the text model alone, by as much of their names as tells them apart: --lora-targets",
            )
    finally:
        model.unload()


def _adopted(session: Session) -> list[Checkpoint]:
    recipe, pool = session.recipe, session.pool
    assert recipe.adopt is not None
    some = np.random.default_rng(recipe.seed).permutation(session.scorable())[:PROBE_ROWS]
    tokens = pool.tokens_of(np.sort(some).tolist())

    def gradients(model: Any) -> dict[str, Tensor]:
        return mean_gradients(model, [(ids[None].copy(), trained[None].copy()) for ids, trained in tokens])

    found = adopt(
        Path(recipe.adopt),
        session.path / "checkpoints",
        base=base_model(session),
        weights=recipe.weights,
        gradients=gradients,
    )
    for note in found.notes:
        session.reporter.note(note)
        session.log.event("adopted", note=note)
    return found.checkpoints


def load_base(recipe: Recipe, reporter: Reporter) -> PreTrainedModel:
    """The frozen base model of a resolved recipe, with the recipe's number of threads."""
    assert recipe.model is not None
    assert recipe.dtype != "auto"
    pin(recipe)
    reporter.note(f"loading {recipe.model}")
    return load_model(
        recipe.model,
        revision=recipe.revision,
        dtype=recipe.dtype,
        attn=recipe.attn,
        quantize=recipe.quantize,
        device=device_of(recipe),
    )


def base_model(session: Session) -> PreTrainedModel:
    """The run's base model, loaded once a session; whoever puts an adapter on it takes it off again."""
    recipe = session.recipe
    pin(recipe)
    if session.base is None:
        session.base = load_base(recipe, session.reporter)
        session.base_digest = model_digest(session.base)
        made_with = {"model": session.base_digest, "dtype": recipe.dtype, "quantize": recipe.quantize}
        claim(session.path / "checkpoints" / "manifest.json", made_with, "the run", {})
    return session.base


@contextmanager
def feature_extractor(session: Session, checkpoint: Checkpoint) -> Iterator[FeatureExtractor]:
    """The model under a checkpoint, ready to make features; the datastore's manifest is claimed first."""
    checkpoint.check(ADAPTER, CONFIG, ADAM)
    base = base_model(session)
    with (
        threads_of_shards(session.recipe),
        quiet_transformers(),
        adapter_on(base, checkpoint.path, trainable=False) as model,
    ):
        projector = _claimed_projector(session, checkpoint, base, model)
        flat = [
            {name: tensor.flatten().to(base.device) for name, tensor in moments.items()}
            for moments in (checkpoint.exp_avg, checkpoint.exp_avg_sq)
        ]
        state = AdamState(flat[0], flat[1], *checkpoint.betas, checkpoint.eps, checkpoint.step)
        with memory_told(session):
            yield FeatureExtractor(
                model, projector, state, gradient_checkpointing=session.recipe.gradient_checkpointing
            )


@contextmanager
def memory_told(session: Session) -> Iterator[None]:
    """Where the device's memory is too small for a batch, a SiftuneError says so."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SiftuneError(
            f"the device's memory does not hold a batch of {session.pool.plan.batch_tokens} tokens",
            where="batch_tokens",
            todo="Start a new run with a smaller --batch-tokens, or with --gradient-checkpointing",
        ) from error


def _claimed_projector(
    session: Session, checkpoint: Checkpoint, base: PreTrainedModel, model: PeftModel
) -> Projector:
    """The run's projector, once the datastore's manifest says that it is made with this and nothing else."""
    recipe = session.recipe
    parameters = lora_parameters(model)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    projector = make_projector(recipe.projection, sizes, recipe.features, recipe.seed)
    made_with = {
        "method": "less",
        "model": session.base_digest,
        "checkpoint": identity_of(checkpoint),
        "encoder": session.pool.plan.encoder,
        "direction": recipe.direction,
        **projector.describe(),
        "parameters": len(sizes),
        "coordinates": sum(sizes.values()),
        "store_dtype": recipe.store_dtype,
        "dtype": recipe.dtype,
        "attn": base.config._attn_implementation,
        "quantize": recipe.quantize,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "batch_tokens": session.pool.plan.batch_tokens,
    }
    made_by = {**versions(), "device": str(device_of(recipe).type), "threads": str(torch.get_num_threads())}
    changed = claim(
        session.store_path(checkpoint.number) / "manifest.json", made_with, "the datastore", made_by
    )
    for what, change in changed.items():
        session.reporter.warn(
            f"the datastore was begun with {what} {change}: features may differ in their last digits"
        )
    return projector


def identity_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint is, by content."""
    return {
        "number": checkpoint.number,
        "adapter": sha256_of(checkpoint.path / "adapter_model.safetensors")[:32],
        "adam": sha256_of(checkpoint.path / "adam_state.safetensors")[:32],
        "step": checkpoint.step,
    }
