"""The stages that need the model: checkpoints (warm-up or adoption), datastore, influence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from siftune.datastore.features_writer import build_datastore, build_influence, build_target_features
from siftune.datastore.manifest import claim, versions
from siftune.datastore.pool import TokenRows
from siftune.datastore.shards import shard_notes
from siftune.datastore.targets import Target, features_file, missing_influence
from siftune.gradients.directions import AdamState
from siftune.gradients.features import FeatureExtractor
from siftune.gradients.projection import make_projector
from siftune.model.adopt import adopt
from siftune.model.checkpoint import Checkpoint, list_checkpoints
from siftune.model.identity import model_digest
from siftune.model.load import load_model
from siftune.model.lora import load_adapter, lora_parameters
from siftune.model.probe import mean_gradients
from siftune.model.warmup import LoraSettings, default_batch, warm_up, warmup_rows
from siftune.pipeline.machine import device_of, pin
from siftune.pipeline.session import Session
from siftune.records.files import read_json, sha256_of

PROBE_ROWS = 32
"""Pool rows whose mean gradient probes the order of adopted moments."""


def make_checkpoints(session: Session) -> list[Checkpoint]:
    """Train or adopt `RUN/checkpoints`, unless they are there, and check that their model is the run's."""
    found = list_checkpoints(session.path)
    if not found:
        with session.log.stage("warmup") as details:
            base = _load_base(session)
            found = _adopted(session, base) if session.recipe.adopt else _warmed_up(session, base)
            details |= {"checkpoints": len(found), "weights": [round(c.weight, 4) for c in found]}
        session.update_index()
        config = read_json(found[0].path / "adapter_config.json")
        changes = {
            "rank": config["r"],
            "alpha": config["lora_alpha"],
            "lora_targets": config["target_modules"],
        }
        session.recipe = session.recipe.with_settings(changes)
        session.save_recipe(checkpoints=[_identity(checkpoint) for checkpoint in found])
        weights = ", ".join(f"{checkpoint.weight:.3f}" for checkpoint in found)
        session.reporter.note(f"{len(found)} checkpoints, weights {weights}")
    return found


def make_datastore(session: Session) -> None:
    """Make what is missing of the features of the pool under every checkpoint."""
    pool, recipe = session.pool, session.recipe
    checkpoints = list_checkpoints(session.path)
    made = 0
    for checkpoint in checkpoints:
        path = session.store_path(checkpoint.number)
        missing = [shard for shard in pool.plan.shards if shard_notes(path, shard) is None]
        if not missing:
            continue
        with (
            session.log.stage(f"datastore {checkpoint.number}") as details,
            _extractor(session, checkpoint) as extractor,
        ):
            rows = sum(len(shard) for shard in missing)
            title = f"gradients at checkpoint {checkpoint.number} of {len(checkpoints)}"
            with session.reporter.bar(title, pool.plan.n_rows, "rows", pool.plan.n_rows - rows) as advance:
                build_datastore(
                    path,
                    pool,
                    extractor,
                    direction=recipe.direction,
                    store_dtype=recipe.store_dtype,
                    on_rows=advance,
                )
            details["rows"] = rows
        made += rows
    if made:
        before = len(session.scorable())
        session.update_index()
        if lost := before - len(session.scorable()):
            session.reporter.warn(
                f"{lost} rows have no usable gradient; see {session.path / 'quarantine.jsonl'}"
            )


def make_influence(session: Session, targets: Mapping[str, tuple[Target, TokenRows]]) -> None:
    """Make what is missing of the targets' features and of the pool's influence on them."""
    plan = session.pool.plan
    for checkpoint in list_checkpoints(session.path):
        store = session.store(checkpoint.number)
        new = {n: t for n, t in targets.items() if not features_file(t[0], checkpoint.number).exists()}
        if new:
            with (
                session.log.stage(f"target features {checkpoint.number}"),
                _extractor(session, checkpoint) as extractor,
            ):
                for name, (target, tokens) in new.items():
                    session.reporter.note(f"gradients of target {name} at checkpoint {checkpoint.number}")
                    build_target_features(target, tokens, checkpoint.number, extractor, plan.batch_tokens)
        for target, _ in targets.values():
            if missing_influence(target, checkpoint.number, store):
                with session.log.stage(f"influence {target.name} {checkpoint.number}"):
                    build_influence(target, checkpoint.number, store)


def _warmed_up(session: Session, base: PreTrainedModel) -> list[Checkpoint]:
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
    steps = -(-len(rows) // batch) * recipe.epochs
    session.reporter.note(
        f"warm-up: {len(rows)} rows, {recipe.epochs} epochs, batches of {batch}, {steps} steps"
    )
    with session.reporter.bar("warm-up", steps, "steps") as advance:
        seen = [0]

        def on_progress(step: int, total: int, loss: float, learning_rate: float) -> None:
            session.log.event("warm-up step", step=step, of=total, loss=loss, learning_rate=learning_rate)
            advance(step - seen[0])
            seen[0] = step

        return warm_up(
            base,
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


def _adopted(session: Session, base: PreTrainedModel) -> list[Checkpoint]:
    recipe, pool = session.recipe, session.pool
    assert recipe.adopt is not None
    some = np.random.default_rng(recipe.seed).permutation(session.scorable())[:PROBE_ROWS]
    tokens = pool.tokens_of(np.sort(some).tolist())

    def gradients(model: Any) -> dict[str, Tensor]:
        return mean_gradients(model, [(ids[None].copy(), trained[None].copy()) for ids, trained in tokens])

    found = adopt(
        Path(recipe.adopt),
        session.path / "checkpoints",
        base=base,
        weights=recipe.weights,
        gradients=gradients,
    )
    for note in found.notes:
        session.reporter.note(note)
        session.log.event("adopted", note=note)
    return found.checkpoints


def _load_base(session: Session) -> PreTrainedModel:
    recipe = session.recipe
    assert recipe.model is not None
    assert recipe.dtype != "auto"
    pin(recipe)
    session.reporter.note(f"loading {recipe.model}")
    return load_model(
        recipe.model,
        revision=recipe.revision,
        dtype=recipe.dtype,
        attn=recipe.attn,
        quantize=recipe.quantize,
        device=device_of(recipe),
    )


@contextmanager
def _extractor(session: Session, checkpoint: Checkpoint) -> Iterator[FeatureExtractor]:
    """The model under a checkpoint, ready to make features; the datastore's manifest is claimed first."""
    recipe = session.recipe
    base = _load_base(session)
    digest = model_digest(base)
    model = load_adapter(base, checkpoint.path, trainable=False)
    parameters = lora_parameters(model)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    projector = make_projector(recipe.projection, sizes, recipe.features, recipe.seed)
    made_with = {
        "method": "less",
        "model": digest,
        "checkpoint": _identity(checkpoint),
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
    device = base.device
    state = AdamState(
        {name: tensor.flatten().to(device) for name, tensor in checkpoint.exp_avg.items()},
        {name: tensor.flatten().to(device) for name, tensor in checkpoint.exp_avg_sq.items()},
        *checkpoint.betas,
        checkpoint.eps,
        checkpoint.step,
    )
    yield FeatureExtractor(model, projector, state, gradient_checkpointing=recipe.gradient_checkpointing)


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint is, by content."""
    return {
        "number": checkpoint.number,
        "adapter": sha256_of(checkpoint.path / "adapter_model.safetensors")[:32],
        "adam": sha256_of(checkpoint.path / "adam_state.safetensors")[:32],
        "step": checkpoint.step,
    }
