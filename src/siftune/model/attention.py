"""Attention of 16-bit models on a CPU: short rows are quicker in fp32.

On a CPU torch's fused attention, forward and backward, takes two to three times as long in bf16 as in fp32 up to about a hundred
tokens, as long at some three hundred, less beyond (benchmarks/results/attention.json): much of a training step. So while this is
open, attention over short rows is computed in fp32, whoever calls it: the same formula with fewer roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

SHORT = 256
"""Tokens up to which fp32 is quicker."""


class ShortAttentionInFp32(TorchFunctionMode):
    """While open, fused attention over at most SHORT tokens of a 16-bit model on the CPU that needs gradients runs in fp32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is scaled_dot_product_attention and torch.is_grad_enabled():
            query = args[0]
            if query.device.type == "cpu" and query.dtype != torch.float32 and query.shape[-2] <= SHORT:
                wide = [_wide(x) for x in args]
                named = {name: _wide(x) for name, x in (kwargs or {}).items()}
                return func(*wide, **named).to(query.dtype)
        return func(*args, **(kwargs or {}))


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def quick_attention(model: PreTrainedModel) -> AbstractContextManager[object]:
    """For a block: ShortAttentionInFp32 where `model` is of the kind that gains from it, else nothing."""
    gains = (
        model.device.type == "cpu"
        and model.dtype != torch.float32
        and model.config._attn_implementation == "sdpa"
    )
    return ShortAttentionInFp32() if gains else nullcontext()


def recomputed() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """`context_fn` of torch's gradient checkpointing: a backward pass drops modes, so blocks that run again open this one anew."""
    return nullcontext(), ShortAttentionInFp32()
