"""The products of stored features with those of target rows, a block of rows at a time.

Features kept in 8 bits need not become fp32 first. A target row is written as a sum of three rows of whole numbers, each
the rounding of what the one before left over:

    φ = s1 q1 + s2 q2 + s3 q3 + rest      |q| ≤ 127, |rest| ≤ max |φ| / 254³

so <scale · kept, φ> = scale · Σ_k s_k <kept, q_k>, whose products of whole numbers are exact. With its three parts it
takes half the time of a product in fp32 (benchmarks/results/query.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from siftune.datastore.quantise import restored_blocks

PARTS = 3
EXACT_COLUMNS = 2**31 // 127**2 // 2
"""Columns whose products of 8-bit numbers are sure to fit 32 bits."""


class Question:
    """Features of target rows `features_V_D`, fp32, to be multiplied with shards."""

    def __init__(self, features_V_D: Tensor):
        self.features_V_D = features_V_D

    def influence(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`influence_n_V` of a shard's rows, fp32, from its tensors; NaN where a row has no feature."""
        if tensors["features"].dtype == torch.int8:
            return self._of_whole_numbers(tensors["features"]).mul_(tensors["scale"][:, None])
        influence_n_V = torch.empty(len(tensors["features"]), len(self.features_V_D))
        for start, features_n_D in restored_blocks(tensors):
            torch.mm(features_n_D, self.features_V_D.T, out=influence_n_V[start : start + len(features_n_D)])
        return influence_n_V

    def _of_whole_numbers(self, kept_n_D: Tensor) -> Tensor:
        whole_D_KV, scale_K_V = self._whole
        total = torch.zeros(len(kept_n_D), whole_D_KV.shape[1])
        for kept, whole in zip(
            kept_n_D.split(EXACT_COLUMNS, dim=1), whole_D_KV.split(EXACT_COLUMNS), strict=True
        ):
            total += torch.ops.aten._int_mm(kept.contiguous(), whole)
        return (total.view(len(kept_n_D), PARTS, -1) * scale_K_V).sum(dim=1)

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        """The whole numbers q of all target rows [D, K V], part after part, and their scales s [K, V]."""
        rest_V_D, parts, scales = self.features_V_D.double(), [], []
        for _ in range(PARTS):
            scale_V = rest_V_D.abs().amax(dim=1) / 127
            step_V = torch.where(scale_V > 0, scale_V, 1.0)
            part_V_D = (rest_V_D / step_V[:, None]).round()
            rest_V_D = rest_V_D - part_V_D * scale_V[:, None]
            parts.append(part_V_D.to(torch.int8))
            scales.append(scale_V.float())
        return torch.cat(parts).T.contiguous(), torch.stack(scales)
