"""Per-example LoRA gradients of a whole batch from one forward and one backward pass.

A LoRA layer computes y = W x + s·B(A x). For an example b with inputs x_t and loss gradients δ_t at the layer's output,

    ∂loss_b/∂A = Σ_t (s Bᵀ δ_t) x_tᵀ          ∂loss_b/∂B = Σ_t (s δ_t) (A x_t)ᵀ

so each is one batched matrix product of what the backward pass holds anyway. Each of the two small linear maps of an adapter
is replaced, while gradients are taken, by an autograd function that makes this product in its backward pass, hands it on and
forgets it: no gradient vector of the whole model ever exists for the batch. Because the hook is at the adapter, the base may be
quantised; because inputs are kept with `save_for_backward`, gradient checkpointing works as ever.

The loss of the batch is the sum of its examples' mean losses, right padding is never attended to (causal attention), so an
example's gradient does not depend on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from siftune.records.errors import SiftuneError

Sink = Callable[[str, Tensor], None]
"""Takes a parameter's name and its gradients [B, out, in], once per parameter and backward pass."""


class _PerExampleLinear(torch.autograd.Function):
    """y = x Wᵀ that hands each example's ∂loss/∂W to a sink instead of accumulating it."""

    @staticmethod
    def forward(ctx: Any, x_B_T_I: Tensor, weight_O_I: Tensor, name: str, sink: Sink) -> Tensor:
        ctx.save_for_backward(x_B_T_I, weight_O_I)
        ctx.name, ctx.sink = name, sink
        return functional.linear(x_B_T_I, weight_O_I)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad_B_T_O,) = grads
        x_B_T_I, weight_O_I = ctx.saved_tensors
        ctx.sink(ctx.name, grad_B_T_O.transpose(1, 2) @ x_B_T_I)
        return (grad_B_T_O @ weight_O_I if ctx.needs_input_grad[0] else None), None, None, None


def lora_linears(model: PeftModel) -> dict[str, nn.Linear]:
    """The A and B maps of the active adapter, keyed by their weight's name in the adapter file."""
    linears: dict[str, nn.Linear] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for part, maps in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
                for adapter in module.active_adapters:
                    if adapter in maps and isinstance(linear := maps[adapter], nn.Linear):
                        linears[f"{module_name}.{part}.weight"] = linear
    return linears


@contextmanager
def captured(model: PeftModel, shape_B_T: tuple[int, int], sink: Sink) -> Iterator[None]:
    """While open, a backward pass through `model` for a batch of B rows × T tokens hands per-example gradients to `sink`."""
    with ExitStack() as undo:
        for name, linear in lora_linears(model).items():
            # The graph has to begin at the lowest adapter although nothing is accumulated in its weight.
            linear.weight.requires_grad_(True)
            setattr(linear, "forward", partial(_forward, linear.weight, name, shape_B_T, sink))  # noqa: B010  typed otherwise
            undo.callback(_restore, linear)
        yield


def _forward(weight_O_I: Tensor, name: str, shape_B_T: tuple[int, int], sink: Sink, x: Tensor) -> Tensor:
    lead = tuple(x.shape[:-1])
    if lead not in (shape_B_T, (shape_B_T[0] * shape_B_T[1],)):  # some blocks flatten rows and tokens (OPT)
        raise SiftuneError(
            f"the adapter at {name.removesuffix('.weight')} gets input of shape {list(x.shape)} for"
            f" {shape_B_T[0]} rows × {shape_B_T[1]} tokens, so its gradient can't be told apart by example (experts of a"
            " mixture do this)",
            where="lora_targets",
            todo="Choose other modules, for example the attention projections",
        )
    y: Any = _PerExampleLinear.apply(x.view(*shape_B_T, -1), weight_O_I, name, sink)
    return y.view(*lead, -1)


def _restore(linear: nn.Linear) -> None:
    del linear.forward
    linear.weight.requires_grad_(False)


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
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
