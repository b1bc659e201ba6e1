"""The floor: forward and backward of the frozen model, logits and loss at trained positions only, no weight gradient at all.

The gradient flows from the loss down to what the input embeddings give, through every layer, as that of any adapter has to.
Attention is computed as siftune computes it (`siftune.model.attention`), so that the floor is one.
With a `rank` the frozen adapter is in its place and adds its two small products a layer, but no gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from rows import Batch, adapter_folder, batches
from torch.nn import functional

from clock import START, Clock, job
from siftune.model.attention import quick_attention
from siftune.model.load import load_model, quiet_transformers
from siftune.model.lora import load_adapter


def step(model: Any, batch: Batch) -> float:
    """One pass down and back; the sum of the rows' mean losses."""
    embedded_B_T_H = model.get_input_embeddings()(batch.ids_B_T).detach().requires_grad_()
    hidden_B_T_H = model.model(inputs_embeds=embedded_B_T_H, use_cache=False).last_hidden_state
    row_M, position_M = batch.trained_B_T[:, 1:].nonzero(as_tuple=True)
    logits_M_V = model.lm_head(hidden_B_T_H[row_M, position_M])
    loss_M = functional.cross_entropy(
        logits_M_V.float(), batch.ids_B_T[row_M, position_M + 1], reduction="none"
    )
    loss = (loss_M / batch.trained_B_T[:, 1:].sum(dim=1)[row_M]).sum()
    loss.backward()
    assert embedded_B_T_H.grad is not None
    return loss.item()


def main() -> None:
    clock, asked = Clock(), job()
    clock.done(START)
    model: Any = load_model(asked["model"], dtype=asked["dtype"])
    with quiet_transformers():
        if "rank" in asked:
            model = load_adapter(model, adapter_folder(asked), trainable=False).get_base_model()
        model.requires_grad_(False)
        with quick_attention(model):
            loss = clock.passes(lambda batch: step(model, batch), batches(asked))
    clock.write(
        rows=asked["rows"],
        mean_loss=loss / asked["rows"],
        dtype=asked["dtype"],
        packages=("torch", "transformers"),
    )


torch.set_num_threads(1)
main()
