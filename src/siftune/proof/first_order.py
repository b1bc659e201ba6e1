"""LESS's first-order check: does a predicted drop of the target's loss come true when the step is really taken?

At a checkpoint with LoRA weights θ, AdamW's state and learning rate η, for a batch b of pool rows and the target's rows v
(arXiv 2402.04333, section 2 and equation 3):

    predicted[b] = η · mean over n in b and v of  |Γ(n)| · <Φ(n), φ(v)> · |∇loss_v(θ)|      from what the datastore holds
    measured[b]  = mean over v of  loss_v(θ) - loss_v(θ after AdamW's step on b)

Features have unit length, so their product times the norms before projection estimates η <∇loss_v, Γ(n)>.

The step is that of torch's own AdamW with the checkpoint's moments, betas, eps and step count; no weight decay, no
clipping. Its gradient is the mean over the batch's rows of each row's own gradient (of the mean loss over the row's
trained tokens): rows weigh alike in the step as they do in the prediction, where a trainer weighs tokens alike.

What the prediction leaves out, and the check therefore measures: the curvature of the loss, that the direction of a mean
gradient is not the mean of directions, and whatever the run's `direction` makes simpler than AdamW (`sgd`: all of it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from siftune.chat.batches import pad_batch, token_batches
from siftune.gradients.capture import layers_checkpointed
from siftune.gradients.loss import causal_model, losses
from siftune.model.attention import quick_attention
from siftune.model.checkpoint import Checkpoint
from siftune.model.lora import lora_parameters

Row = tuple[np.ndarray, np.ndarray]
"""(token ids [T], trained [T] bool) of one row."""


def predicted_drop(
    influence_B_V: np.ndarray, direction_norm_B: np.ndarray, grad_norm_V: np.ndarray, learning_rate: float
) -> float:
    """Drop of the target's mean loss (nats a token) that a step on B pool rows promises, to first order.

    influence_B_V: cosines <Φ(n), φ(v)>, neither centred nor weighted; norms are those before projection
    """
    scaled_B_V = influence_B_V.astype(np.float64) * np.outer(direction_norm_B, grad_norm_V)
    return learning_rate * float(scaled_B_V.mean())


@contextmanager
def stepped(
    model: PeftModel,
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    *,
    learning_rate: float,
    batch_tokens: int,
    gradient_checkpointing: bool = False,
) -> Iterator[None]:
    """While open, θ is where AdamW's step from the checkpoint on the batch `rows` takes it; afterwards bit for bit as before.

    model:        with the checkpoint's adapter loaded and active, in eval mode (no dropout)
    batch_tokens: padded tokens a forward pass; changes the step by rounding only
    """
    parameters = lora_parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = _adamw(checkpoint, parameters, learning_rate)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with layers_checkpointed(model, gradient_checkpointing), quick_attention(causal_model(model)):
            for batch in token_batches([len(ids) for ids, _ in rows], batch_tokens):
                (_losses(model, [rows[i] for i in batch]).sum() / len(rows)).backward()
        optimizer.step()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
                parameter.requires_grad_(False).grad = None


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Sequence[Row], batch_tokens: int) -> float:
    """Mean over rows of each row's mean loss over its trained tokens (nats a token); row losses fp32, their mean fp64."""
    loss_N = np.empty(len(rows), np.float64)
    for batch in token_batches([len(ids) for ids, _ in rows], batch_tokens):
        loss_N[batch] = _losses(model, [rows[i] for i in batch]).double().cpu().numpy()
    return float(loss_N.mean())


def _losses(model: nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    device = next(model.parameters()).device
    ids_B_T, trained_B_T, _ = pad_batch(rows, pad_id=0)
    return losses(model, torch.from_numpy(ids_B_T).to(device), torch.from_numpy(trained_B_T).to(device))


def _adamw(
    checkpoint: Checkpoint, parameters: dict[str, nn.Parameter], learning_rate: float
) -> torch.optim.AdamW:
    """torch's AdamW over θ as the checkpoint's training left it, but for weight decay."""
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, betas=checkpoint.betas, eps=checkpoint.eps, weight_decay=0.0
    )
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name].to(parameter.device, copy=True),
            "exp_avg_sq": checkpoint.exp_avg_sq[name].to(parameter.device, copy=True),
        }
    return optimizer
