"""How features are kept: in fp32, in 16 bits, or in 8 bits with a scale per row.

    int8:  scale[n] = max |x[n]| / 127        kept[n, d] = round(x[n, d] / scale[n])        x ≈ scale · kept

A row that has no feature is NaN when it is read: in int8 it has the scale NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from siftune.records.recipe import StoreDtype

TORCH_DTYPES: dict[StoreDtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
BLOCK_ROWS = 256
"""Rows that are turned into fp32 at a time: as many as a matrix product needs to run at full speed."""


def row_bytes(store_dtype: StoreDtype, n_features: int) -> int:
    """Bytes that the feature of one row takes."""
    return n_features * TORCH_DTYPES[store_dtype].itemsize + (4 if store_dtype == "int8" else 0)


def quantised(features_N_D: Tensor, store_dtype: StoreDtype) -> dict[str, Tensor]:
    """fp32 features as the tensors of a shard: `features`, and with int8 `scale` [n]."""
    if store_dtype != "int8":
        return {"features": features_N_D.to(TORCH_DTYPES[store_dtype])}
    scale_N = features_N_D.abs().amax(dim=1) / 127
    step_N = torch.where(scale_N > 0, scale_N, 1.0)  # a zero row stays one; NaN is no number to divide by
    whole_N_D = (features_N_D / step_N[:, None]).round().nan_to_num(0.0).clamp(-127, 127)
    return {"features": whole_N_D.to(torch.int8), "scale": scale_N}


def restored(tensors: Mapping[str, Tensor], start: int = 0, stop: int | None = None) -> Tensor:
    """`features_n_D` in fp32 of some rows of a shard (all, unless told), from its tensors."""
    features_n_D = tensors["features"][start:stop].float()
    scale_N = tensors.get("scale")
    return features_n_D if scale_N is None else features_n_D.mul_(scale_N[start:stop, None])


def restored_blocks(tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """The rows of a shard in fp32, BLOCK_ROWS at a time: (first row, counted in the shard; `features_n_D`)."""
    for start in range(0, len(tensors["features"]), BLOCK_ROWS):
        yield start, restored(tensors, start, start + BLOCK_ROWS)
