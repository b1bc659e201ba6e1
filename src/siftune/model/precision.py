"""A model computing in fp32 for as long as it is measured, whatever its weights are kept in.

16-bit activations round the losses of rows, and not each its own way: a mean over a test shifts with how rows are batched, by
as much as two choices may differ (benchmarks/measuring.py). The weights stay the very same: every 16-bit number is an fp32 number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers of 16 bits are fp32 for the length of a block, afterwards as they were.

    A quantised model goes on computing as it does: its kernels take 16 bits alone. No 16-bit weight may train
    in the block; an adapter, which is fp32, may. Flash attention, which takes 16 bits alone too, gives way to torch's.
    """
    quantised = getattr(model.config, "quantization_config", None) is not None
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in HALF and not quantised]
    before = [t.dtype for t in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    attention = str(getattr(model.config, "_attn_implementation", ""))
    flash = bool(tensors) and "flash" in attention
    if flash:
        model.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        if flash:
            model.set_attn_implementation(attention)  # pyright: ignore[reportCallIssue]
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)
