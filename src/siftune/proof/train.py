"""Train on a choice of rows, the same way whoever chose them: the proof that a selection is worth something.

A fresh LoRA adapter on the base model by the same code as the warm-up. Arms of a comparison differ in their rows alone:
batch, steps, learning rate and seed are one `Training` for all.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from siftune.model.warmup import LoraSettings, Progress, Row, warm_up
from siftune.records.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from siftune.records.recipe import Recipe

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class Training:
    """How a choice is trained on. `steps` optimizer steps of `batch` rows, going through the rows as often as that takes.

    micro_tokens: padded tokens a forward pass may hold; it changes rounding only
    """

    steps: int
    batch: int
    learning_rate: float
    rank: int
    alpha: float
    dropout: float
    lora_targets: tuple[str, ...]
    seed: int
    gradient_checkpointing: bool
    micro_tokens: int

    @classmethod
    def of(cls, recipe: Recipe, *, n_rows: int, batch: int, seed: int) -> Training:
        """As the recipe says, for as many steps as `n_rows` rows take for its epochs."""
        assert recipe.batch_tokens is not None
        return cls(
            steps=recipe.epochs * -(-n_rows // batch),
            batch=batch,
            learning_rate=recipe.learning_rate,
            rank=recipe.rank,
            alpha=recipe.alpha,
            dropout=recipe.dropout,
            lora_targets=tuple(recipe.lora_targets),
            seed=seed,
            gradient_checkpointing=recipe.gradient_checkpointing,
            micro_tokens=recipe.batch_tokens,
        )


def train_on(
    base: PreTrainedModel,
    rows: Sequence[Row],
    folder: Path,
    training: Training,
    *,
    on_progress: Progress | None = None,
) -> Path:
    """Train on `rows`, (token ids [T], trained [T]) each, and return the folder of the adapter.

    folder: what an earlier training on the same rows left there is used or carried on. `base` is as it was afterwards.
    Raises SiftuneError where the loss is not a number, or `folder` holds another training.
    """
    adapter, finished = folder / "adapter", folder / "training.json"
    if not finished.exists():
        steps_an_epoch = -(-len(rows) // training.batch)
        longest = max((len(ids) for ids, _ in rows), default=1)
        losses: list[float] = []

        def watched(step: int, of: int, loss: float, learning_rate: float) -> None:
            losses.append(loss)
            if on_progress:
                on_progress(step, of, loss, learning_rate)

        checkpoints = warm_up(
            base,
            rows,
            folder / "checkpoints",
            seed=training.seed,
            epochs=-(-training.steps // steps_an_epoch) if rows else 1,
            steps=training.steps,
            batch=training.batch,
            learning_rate=training.learning_rate,
            lora=LoraSettings(training.rank, training.alpha, training.dropout, training.lora_targets),
            micro_batch=max(1, training.micro_tokens // longest),
            gradient_checkpointing=training.gradient_checkpointing,
            on_progress=watched,
        )
        adapter.mkdir(exist_ok=True)
        for name in ADAPTER:
            shutil.copy2(checkpoints[-1].path / name, adapter / name)
        write_json(finished, {**asdict(training), "rows": len(rows), "losses": losses})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return adapter
