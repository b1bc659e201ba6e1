"""Train on a choice of rows, the same way whoever chose them: the proof that a selection is worth something.

A fresh LoRA adapter on the base model, with the recipe's own settings and seed, by the same code as the warm-up. Arms
of a comparison therefore differ in their rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from siftune.model.warmup import LoraSettings, Progress, Row, default_batch, warm_up

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from siftune.records.recipe import Recipe


def train_on(
    base: PreTrainedModel,
    rows: Sequence[Row],
    folder: Path,
    recipe: Recipe,
    *,
    on_progress: Progress | None = None,
) -> Path:
    """Train on `rows`, (token ids [T], trained [T]) each, and return the folder of the adapter after the last epoch.

    folder: what an earlier training on the same rows left there is used or carried on. `base` is as it was afterwards.
    Settings of the recipe that count: epochs, batch, learning_rate, rank, alpha, dropout, lora_targets, seed and
    gradient_checkpointing; never the warm-up's own adapter. Raises SiftuneError where the loss is not a number.
    """
    checkpoints = warm_up(
        base,
        rows,
        folder / "checkpoints",
        seed=recipe.seed,
        epochs=recipe.epochs,
        batch=recipe.batch or default_batch(len(rows)),
        learning_rate=recipe.learning_rate,
        lora=LoraSettings(recipe.rank, recipe.alpha, recipe.dropout, recipe.lora_targets),
        gradient_checkpointing=recipe.gradient_checkpointing,
        on_progress=on_progress,
    )
    return checkpoints[-1].path
