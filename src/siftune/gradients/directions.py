"""The direction: the update that an optimizer at a checkpoint would take from one example (LESS's Γ, arXiv 2402.04333, section 3).

With g the example's gradient, m and v the Adam moments at the checkpoint, t = its step, β1, β2, ε as the optimizer had them
and no weight decay:

    m' = β1 m + (1-β1) g          v' = β2 v + (1-β2) g²

    adam          Γ = m'/(1-β1^(t+1)) / (sqrt(v'/(1-β2^(t+1))) + ε)
    adam-less     Γ = m' / sqrt(v' + 1e-8)              as the released LESS code: no bias correction, ε inside the root
    adam-precond  Γ = g / (sqrt(v'/(1-β2^(t+1))) + ε)   no history in the numerator
    sgd           Γ = g
    sign          Γ = sign(g)

The sign is that of g: a step goes along -Γ, and the first-order drop of the target loss is η <∇loss_target, Γ>.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from siftune.records.recipe import Direction

RELEASED_LESS_EPSILON = 1e-8  # princeton-nlp/LESS, collect_grad_reps.py: eps inside the square root


@dataclass(frozen=True)
class AdamState:
    """Adam moments at a checkpoint: `exp_avg[name]`, `exp_avg_sq[name]` flat fp32, and the optimizer's numbers."""

    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    beta1: float
    beta2: float
    epsilon: float
    step: int


def direction(kind: Direction, name: str, gradient_B_P: Tensor, state: AdamState | None) -> Tensor:
    """Directions [B, P] (fp32) of B examples for one parameter.

    `state` may be None for `sgd` and `sign`, which need no moments. The gradient itself is returned for `sgd`.
    """
    if kind == "sgd":
        return gradient_B_P
    if kind == "sign":
        return gradient_B_P.sign()
    if state is None:
        raise ValueError(f"direction {kind} needs the optimizer's moments")
    v_B_P = torch.addcmul(
        state.beta2 * state.exp_avg_sq[name], gradient_B_P, gradient_B_P, value=1 - state.beta2
    )
    if kind == "adam-precond":
        numerator_B_P = gradient_B_P
    else:
        numerator_B_P = torch.add(state.beta1 * state.exp_avg[name], gradient_B_P, alpha=1 - state.beta1)
    if kind == "adam-less":
        return numerator_B_P / v_B_P.add_(RELEASED_LESS_EPSILON).sqrt_()
    bias1 = 1 - state.beta1 ** (state.step + 1)
    bias2 = 1 - state.beta2 ** (state.step + 1)
    denominator_B_P = v_B_P.div_(bias2).sqrt_().add_(state.epsilon)
    quotient_B_P = numerator_B_P / denominator_B_P
    return quotient_B_P if kind == "adam-precond" else quotient_B_P.div_(bias1)
