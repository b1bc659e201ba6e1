"""The plain slow way: one example at a time, autograd over the LoRA weights, formulas written out, projection by hand."""

from __future__ import annotations

import numpy as np
import torch
from peft import PeftModel

from siftune.gradients.directions import AdamState
from siftune.gradients.projection import rademacher_draw, sketch_draw
from siftune.model.lora import lora_parameters


def gradients(
    model: PeftModel, token_ids: np.ndarray, trained: np.ndarray
) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over trained tokens of one unpadded row, and its gradient for every LoRA weight."""
    parameters = lora_parameters(model)
    flags = {name: p.requires_grad for name, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_(True)
    ids = torch.from_numpy(token_ids).long()[None]
    log_p = model(input_ids=ids).logits[0].float().log_softmax(-1)
    terms = [-log_p[t - 1, ids[0, t]] for t in range(1, ids.shape[1]) if trained[t]]
    loss = torch.stack(terms).mean()
    grads = torch.autograd.grad(loss, list(parameters.values()))
    for name, p in parameters.items():
        p.requires_grad_(flags[name])
    return loss.item(), {name: g.detach().flatten() for name, g in zip(parameters, grads, strict=True)}


def directed(
    kind: str, gradient: dict[str, torch.Tensor], state: AdamState | None
) -> dict[str, torch.Tensor]:
    """The direction's formula in float64."""
    out = {}
    for name, g32 in gradient.items():
        g = g32.double()
        if kind == "sgd":
            out[name] = g
            continue
        if kind == "sign":
            out[name] = torch.sign(g)
            continue
        assert state is not None
        m = state.beta1 * state.exp_avg[name].double() + (1 - state.beta1) * g
        v = state.beta2 * state.exp_avg_sq[name].double() + (1 - state.beta2) * g**2
        t = state.step + 1
        m_hat, v_hat = m / (1 - state.beta1**t), v / (1 - state.beta2**t)
        if kind == "adam":
            out[name] = m_hat / (v_hat.sqrt() + state.epsilon)
        elif kind == "adam-less":
            out[name] = m / (v + 1e-8).sqrt()
        elif kind == "adam-precond":
            out[name] = g / (v_hat.sqrt() + state.epsilon)
    return out


def projected(kind: str, parts: dict[str, torch.Tensor], n_features: int, seed: int) -> np.ndarray:
    """The projection in float64, coordinate by coordinate."""
    if kind == "none":
        return torch.cat(list(parts.values())).numpy()
    out = np.zeros(n_features)
    for name, part in parts.items():
        values = part.numpy()
        if kind == "sketch":
            start, sign = sketch_draw(seed, name, len(values), n_features)
            for i, x in enumerate(values):
                out[(start[i // n_features] + i) % n_features] += float(sign[i]) * x
        else:
            for i, x in enumerate(values):
                out += (
                    rademacher_draw(seed, name, i, 1, n_features)[0].astype(float) * x / np.sqrt(n_features)
                )
    return out


def random_state(model: PeftModel, seed: int = 0, step: int = 12) -> AdamState:
    """Moments of plausible sizes: v over five orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    m, v = {}, {}
    for name, p in lora_parameters(model).items():
        v[name] = 10 ** (torch.rand(p.numel(), generator=generator) * 5 - 8)
        m[name] = torch.randn(p.numel(), generator=generator) * v[name].sqrt()
    return AdamState(m, v, 0.9, 0.999, 1e-8, step)
