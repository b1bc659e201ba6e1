"""dattri-llm's LESS attributor in its frozen form: every row's Adam direction scored against one target row, nothing projected.

The target row's gradient is part of its one call, so it counts as one row more. Rows are sorted by length and padded to the
longest of their batch, since its loader has no padding of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from adapted import adapted_model
from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, LESSAttributor
from dattri_llm.gradient.optimizer_state import optimizer_from_state_dict
from rows import Batch, adapter_folder, batches
from torch import nn
from torch.nn import functional

from clock import FIRST, GRADIENTS, LOAD, START, Clock, job

LORA = [r"lora_[AB]\.default$"]


def summed_means(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the rows' mean losses: each row's gradient is that of its own loss."""
    labels_B_T = batch["labels"][:, 1:]
    logits_B_T_V = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    loss_B_T = functional.cross_entropy(
        logits_B_T_V.float().transpose(1, 2), labels_B_T, ignore_index=-100, reduction="none"
    )
    loss = (loss_B_T.sum(dim=1) / (labels_B_T != -100).sum(dim=1)).sum()
    seen.append((loss.item(), len(labels_B_T)))
    return loss


seen: list[tuple[float, int]] = []


def examples(made: list[Batch]) -> list[dict[str, torch.Tensor]]:
    """Rows as its loader wants them, in an order in which equal lengths meet in a batch."""
    return [
        {"input_ids": ids_T, "labels": labels_T}
        for batch in made
        for ids_T, labels_T in zip(batch.ids_B_T, batch.labels(), strict=True)
    ]


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    model = adapted_model(asked)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    saved = torch.load(adapter_folder(asked) / "optimizer.pt", weights_only=True)
    optimizer = optimizer_from_state_dict(model, saved, names)
    scratch = Path(asked["scratch"])
    how = AttributionArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=asked["batch"],
        per_device_eval_batch_size=1,
        use_cpu=True,
    )
    attributor = LESSAttributor(how, task=AttributionTask(summed_means, model), optimizers=[optimizer])
    made = batches(asked)
    rows, target = examples(made), examples([made[-1]])[-1:]
    hooks = HookManagerConfig(linear_io=LORA)
    clock.done(LOAD)
    attributor.attribute(target, target, hook_config=hooks)
    clock.done(FIRST)
    seen.clear()
    attributor.attribute(rows, target, hook_config=hooks)
    clock.done(GRADIENTS)
    clock.write(
        rows=sum(n for _, n in seen),
        mean_loss=sum(loss for loss, _ in seen) / sum(n for _, n in seen),
        dtype=asked["dtype"],
        packages=("dattri-llm", "dattri", "torch", "transformers", "peft"),
        direction="adam",
        features=None,
    )
    shutil.rmtree(scratch, ignore_errors=True)


torch.set_num_threads(1)
main()
