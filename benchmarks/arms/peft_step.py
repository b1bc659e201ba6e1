"""Forward and backward of a plain Transformers + PEFT training step with labels; no optimizer step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rows import Batch, batches
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from clock import FIRST, GRADIENTS, LOAD, START, Clock, job

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step(model: Any, batch: Batch) -> float:
    """The mean loss of the batch, times its rows. What Trainer does before it steps."""
    loss = model(input_ids=batch.ids_B_T, labels=batch.labels()).loss
    loss.backward()
    model.zero_grad()
    return loss.item() * len(batch.ids_B_T)


def main() -> None:
    clock, asked = Clock(), job()
    logging.disable_progress_bar()
    clock.done(START)
    base: Any = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=DTYPES[asked["dtype"]])
    adapter = Path(asked["inputs"]) / f"adapter-{asked['rank']}"
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).train()
    todo = batches(asked)
    clock.done(LOAD)
    step(model, todo[-1])
    clock.done(FIRST)
    losses = [step(model, batch) for batch in todo]
    clock.done(GRADIENTS)
    clock.write(
        rows=asked["rows"],
        mean_loss=sum(losses) / asked["rows"],
        dtype=asked["dtype"],
        packages=("torch", "transformers", "peft"),
    )


torch.set_num_threads(1)
main()
