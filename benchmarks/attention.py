"""Fused attention of a 16-bit model on the CPU, forward and backward: as it is, and in fp32 as siftune has it for short rows.

OMP_NUM_THREADS=1 python benchmarks/attention.py
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from record import write_result

HEADS, KEYS, WIDTH = 9, 3, 64  # as SmolLM2-135M
TOKENS = 2048  # in a batch
LENGTHS = (32, 64, 128, 192, 256, 384, 512, 1024)
ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for length in LENGTHS:
        q, k, v = (
            torch.randn(TOKENS // length, length, heads, WIDTH)
            .bfloat16()
            .transpose(1, 2)
            .requires_grad_(True)
            for heads in (HEADS, KEYS, KEYS)
        )
        seconds: dict[str, list[float]] = {"bf16": [], "fp32": []}
        for _ in range(ROUNDS):
            for name in seconds:
                seconds[name].append(_pass(q, k, v, wide=name == "fp32"))
        milliseconds = {name: round(1000 * median(values[1:]), 2) for name, values in seconds.items()}
        rows.append({"length": length, "cpu_ms": milliseconds})
        print(rows[-1])
    print(write_result("attention", {"tokens": TOKENS, "heads": [HEADS, KEYS, WIDTH], "rows": rows}))


def _pass(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, wide: bool) -> float:
    """CPU seconds of a forward and a backward pass."""
    began = time.process_time()
    given = [x.float() for x in (q, k, v)] if wide else [q, k, v]
    out = scaled_dot_product_attention(given[0], given[1], given[2], is_causal=True, enable_gqa=True).to(
        q.dtype
    )
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return time.process_time() - began


if __name__ == "__main__":
    main()
