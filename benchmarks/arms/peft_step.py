"""Forward and backward of a plain Transformers + PEFT training step with labels; no optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from adapted import adapted_model
from rows import Batch, batches

from clock import START, Clock, job


def step(model: Any, batch: Batch) -> float:
    """The mean loss of the batch, times its rows. What Trainer does before it steps."""
    loss = model(input_ids=batch.ids_B_T, labels=batch.labels()).loss
    loss.backward()
    model.zero_grad()
    return loss.item() * len(batch.ids_B_T)


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    model = adapted_model(asked).train()
    loss = clock.passes(lambda batch: step(model, batch), batches(asked))
    clock.write(
        rows=asked["rows"],
        mean_loss=loss / asked["rows"],
        dtype=asked["dtype"],
        packages=("torch", "transformers", "peft"),
    )


torch.set_num_threads(1)
main()
