"""Per-example LoRA gradients of a whole batch from one forward and one backward pass.

A LoRA layer computes y = W x + s·B(A x). For an example b with inputs x_t and loss gradients δ_t at the layer's output,

    ∂loss_b/∂A = Σ_t (s Bᵀ δ_t) x_tᵀ          ∂loss_b/∂B = Σ_t (s δ_t) (A x_t)ᵀ

so each is one batched matrix product of what the backward pass holds anyway. While gradients are taken, an adapted layer adds
its LoRA term with an autograd function that makes these products in its backward pass, hands them on and forgets them: no
gradient vector of the whole model ever exists for the batch. The layer below, whatever it is, quantised or not, is left alone;
because inputs are kept with `save_for_backward`, gradient checkpointing works as ever.

The term is computed in the activations' dtype, as the layer below is: in fp32 where that is fp32, in bf16 (summed in fp32 by the
hardware) where it is bf16; in fp16, whose range is too small for gradients, in fp32.

The loss of the batch is the sum of its examples' mean losses, right padding is never attended to (causal attention), so an
example's gradient does not depend on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from siftune.model.attention import recomputed
from siftune.records.errors import SiftuneError

Sink = Callable[[str, Tensor], None]
"""Takes a parameter's name and its gradients [B, out, in], once per parameter and backward pass."""


class Weights(NamedTuple):
    """What one adapted layer adds, in the dtype it is added in."""

    a_R_I: Tensor
    b_O_R: Tensor
    """Times the scaling."""
    bias_O: Tensor | None
    scaling: float


class Adapted:
    """A layer with an active adapter. Its weights are brought to the dtype of the pass once, not with every batch."""

    def __init__(self, layer: Any, adapter: str):
        self.layer, self.adapter = layer, adapter
        self._weights: dict[torch.dtype, Weights] = {}

    def weights(self, x_dtype: torch.dtype) -> Weights:
        dtype = torch.bfloat16 if x_dtype == torch.bfloat16 else torch.float32
        if dtype not in self._weights:
            b, scaling = self.layer.lora_B[self.adapter], self.layer.scaling[self.adapter]
            self._weights[dtype] = Weights(
                self.layer.lora_A[self.adapter].weight.detach().to(dtype),
                (b.weight.detach() * scaling).to(dtype),
                None if b.bias is None else (b.bias.detach() * scaling).to(dtype),
                scaling,
            )
        return self._weights[dtype]


class _Term(NamedTuple):
    """What one adapted layer adds to one batch of B rows × T tokens, and who takes its gradients."""

    name: str
    weights: Weights
    shape_B_T: tuple[int, int]
    sink: Sink


class _PerExampleLora(torch.autograd.Function):
    """y = base + s·B(A x), whose backward hands each example's ∂loss/∂A and ∂loss/∂B to a sink instead of accumulating them."""

    @staticmethod
    def forward(ctx: Any, base_M_O: Tensor, x_M_I: Tensor, start: Tensor, term: _Term) -> Tensor:
        a_R_I, b_O_R, bias_O, _ = term.weights
        dtype = a_R_I.dtype
        low_M_R = x_M_I.to(dtype) @ a_R_I.T
        ctx.save_for_backward(x_M_I, low_M_R)
        ctx.term = term
        y_M_O = torch.addmm(base_M_O.to(dtype), low_M_R, b_O_R.T)
        if bias_O is not None:
            y_M_O += bias_O
        return y_M_O.to(base_M_O.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad_M_O,) = grads
        x_M_I, low_M_R = ctx.saved_tensors
        term: _Term = ctx.term
        a_R_I, b_O_R, _, scaling = term.weights
        delta_M_O = grad_M_O.to(a_R_I.dtype)
        u_M_R = delta_M_O @ b_O_R
        term.sink(f"{term.name}.lora_A.weight", _by_example(u_M_R, x_M_I.to(u_M_R.dtype), term.shape_B_T))
        scaled_M_R = low_M_R * scaling
        term.sink(f"{term.name}.lora_B.weight", _by_example(delta_M_O, scaled_M_R, term.shape_B_T))
        return grad_M_O, (u_M_R @ a_R_I).to(x_M_I.dtype) if ctx.needs_input_grad[1] else None, None, None


def _by_example(left_M_P: Tensor, right_M_Q: Tensor, shape_B_T: tuple[int, int]) -> Tensor:
    """Σ_t left_t right_tᵀ of every example, [B, P, Q]."""
    return left_M_P.view(*shape_B_T, -1).transpose(1, 2) @ right_M_Q.view(*shape_B_T, -1)


def adapted_layers(model: PeftModel) -> dict[str, Adapted]:
    """Adapted layers by their names in the adapter file. Weights that change afterwards want a new call."""
    return {
        name: Adapted(module, adapter)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for adapter in module.active_adapters
        if adapter in module.lora_A and isinstance(module.lora_A[adapter], nn.Linear)
    }


@contextmanager
def captured(layers: Mapping[str, Adapted], shape_B_T: tuple[int, int], sink: Sink) -> Iterator[None]:
    """While open, a backward pass through the model of `layers` for a batch of B rows × T tokens hands per-example gradients to `sink`."""
    with ExitStack() as undo:
        for name, adapted in layers.items():
            # The graph has to begin at the lowest adapter although nothing is accumulated in its weights.
            device = adapted.layer.lora_A[adapted.adapter].weight.device
            start = torch.zeros((), device=device, requires_grad=True)
            setattr(adapted.layer, "forward", partial(_forward, adapted, name, shape_B_T, sink, start))  # noqa: B010  typed otherwise
            undo.callback(delattr, adapted.layer, "forward")
        yield


def _forward(
    adapted: Adapted,
    name: str,
    shape_B_T: tuple[int, int],
    sink: Sink,
    start: Tensor,
    x: Tensor,
    *rest: Any,
    **named: Any,
) -> Tensor:
    lead = tuple(x.shape[:-1])
    if lead not in (shape_B_T, (shape_B_T[0] * shape_B_T[1],)):  # some blocks flatten rows and tokens (OPT)
        raise SiftuneError(
            f"the adapter at {name} gets input of shape {list(x.shape)} for"
            f" {shape_B_T[0]} rows × {shape_B_T[1]} tokens, so its gradient can't be told apart by example (experts of a"
            " mixture do this)",
            where="lora_targets",
            todo="Choose other modules, for example the attention projections",
        )
    base = adapted.layer.base_layer(x, *rest, **named)
    term = _Term(name, adapted.weights(x.dtype), shape_B_T, sink)
    y: Any = _PerExampleLora.apply(base.flatten(0, -2), x.flatten(0, -2), start, term)
    return y.view(*base.shape)


@contextmanager
def layers_checkpointed(model: nn.Module, on: bool) -> Iterator[None]:
    """While open, the model's blocks recompute their activations in the backward pass (if `on`).

    Transformers' own switch works in training mode only, where dropout would be on too.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if on else []
    if on and not blocks:
        raise SiftuneError(
            f"{type(model).__name__} has no layers that can be recomputed",
            where="gradient_checkpointing: true",
            todo="Leave gradient_checkpointing off for this model",
        )
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, context_fn=recomputed
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
