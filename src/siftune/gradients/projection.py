"""Random projection of a direction to D numbers, its randomness drawn per parameter name.

One map serves pool rows, target rows and all checkpoints. What it does to coordinate i of parameter `name` follows from
(seed, name, i) alone, through the counter-based generator Philox keyed by a hash, so any machine rebuilds it and neither
the order of parameters nor the batch matters.

`sketch`     (default) sparse Johnson-Lindenstrauss: coordinate i goes to one bucket b(i) with a sign s(i),
             feature[b(i)] += s(i) · direction[i]            (Charikar et al. 2002; Weinberger et al. 2009)
             The buckets of D coordinates in a row, a window, follow one another from a random first one on:
             b(i) = (start[i div D] + i mod D) mod D. Signs are independent, so the estimate is unbiased, and coordinates of
             different windows meet with probability 1/D, of one window never: the error is at most that of buckets drawn one by
             one. And a window is added as it lies in memory (benchmarks/projection.py).
`rademacher` dense: feature = R direction / sqrt(D), R of ±1  (what LESS uses; the reference, slow)
`none`       the direction itself, parameters one after the other

All three keep squared lengths in expectation, so inner products of projections estimate inner products of directions.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor


class Projector(ABC):
    """A linear map from named coordinates to D features.

    sizes: number of coordinates of each parameter, in the order of the model
    """

    def __init__(self, kind: Literal["sketch", "rademacher", "none"], n_features: int, seed: int):
        self.kind, self.n_features, self.seed = kind, n_features, seed

    def sums(self, n_rows: int, device: torch.device) -> Tensor:
        """Zeros, fp32, in which the projections of B directions are added up, parameter by parameter."""
        return torch.zeros(n_rows, self.n_features, device=device)

    @abstractmethod
    def add(self, name: str, direction_B_P: Tensor, sums_B_S: Tensor) -> None:
        """Add the projection of one parameter's part of B directions (fp32) to `sums` in place."""

    def projected(self, sums_B_S: Tensor) -> Tensor:
        """The projections [B, D] that `sums` hold."""
        return sums_B_S

    def describe(self) -> dict[str, str | int]:
        """What a store must record to be compared with nothing else."""
        return {"projection": self.kind, "features": self.n_features, "projection_seed": self.seed}


def make_projector(
    kind: Literal["sketch", "rademacher", "none"], sizes: Mapping[str, int], n_features: int, seed: int
) -> Projector:
    """The projector of a recipe; with `none`, D is the number of coordinates, whatever `n_features` says."""
    if kind == "sketch":
        return _Sketch(n_features, seed)
    if kind == "rademacher":
        return _Rademacher(n_features, seed)
    return _Concatenation(sizes)


class _Sketch(Projector):
    def __init__(self, n_features: int, seed: int):
        super().__init__("sketch", n_features, seed)
        self._maps: dict[tuple[str, torch.device], tuple[list[int], Tensor]] = {}

    def describe(self) -> dict[str, str | int]:
        return {**super().describe(), "projection_map": "windows"}

    def sums(self, n_rows: int, device: torch.device) -> Tensor:
        """Twice D buckets: a window runs on past the last bucket instead of going on at the first."""
        return torch.zeros(n_rows, 2 * self.n_features, device=device)

    def add(self, name: str, direction_B_P: Tensor, sums_B_S: Tensor) -> None:
        starts, sign_P = self._map(name, direction_B_P.shape[1], direction_B_P.device)
        windows = zip(
            starts,
            direction_B_P.split(self.n_features, 1),
            sign_P.to(direction_B_P.dtype).split(self.n_features),
            strict=True,
        )
        for start, window_B_W, sign_W in windows:
            sums_B_S.narrow(1, start, len(sign_W)).addcmul_(window_B_W, sign_W)

    def projected(self, sums_B_S: Tensor) -> Tensor:
        return sums_B_S[:, : self.n_features] + sums_B_S[:, self.n_features :]

    def _map(self, name: str, size: int, device: torch.device) -> tuple[list[int], Tensor]:
        """Where windows start, and signs; drawn once per parameter, then kept (a byte a coordinate)."""
        key = (name, device)
        if key not in self._maps:
            start_W, sign_P = sketch_draw(self.seed, name, size, self.n_features)
            self._maps[key] = start_W.tolist(), torch.from_numpy(sign_P).to(device)
        return self._maps[key]


class _Rademacher(Projector):
    CHUNK = 2048  # coordinates at a time: 64 MiB of signs at D = 8192

    def __init__(self, n_features: int, seed: int):
        super().__init__("rademacher", n_features, seed)

    def add(self, name: str, direction_B_P: Tensor, sums_B_S: Tensor) -> None:
        scale = self.n_features**-0.5
        for start in range(0, direction_B_P.shape[1], self.CHUNK):
            part_B_P = direction_B_P[:, start : start + self.CHUNK]
            signs_P_D = rademacher_draw(self.seed, name, start, part_B_P.shape[1], self.n_features)
            sums_B_S += part_B_P @ torch.from_numpy(signs_P_D).to(part_B_P.device) * scale


class _Concatenation(Projector):
    def __init__(self, sizes: Mapping[str, int]):
        super().__init__("none", sum(sizes.values()), 0)
        ends = np.cumsum(list(sizes.values())).tolist()
        self._part = {
            name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
        }

    def add(self, name: str, direction_B_P: Tensor, sums_B_S: Tensor) -> None:
        sums_B_S[:, self._part[name]] += direction_B_P


def sketch_draw(seed: int, name: str, size: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """First bucket (int64, 0 ≤ start < D) of each window of D coordinates, and sign (int8 ±1) of each of a parameter's `size`."""
    windows = -(-size // n_features)
    raw_W = _philox("sketch windows", seed, name).random_raw(windows)
    words = _philox("sketch signs", seed, name).random_raw(-(-size // 64)).astype("<u8").view(np.uint8)
    bits_P = np.unpackbits(words, bitorder="little")[:size].astype(np.int8)
    return (raw_W % np.uint64(n_features)).astype(np.int64), bits_P * np.int8(2) - np.int8(1)


def rademacher_draw(seed: int, name: str, start: int, count: int, n_features: int) -> np.ndarray:
    """Signs ±1 (fp32) [count, D] of a parameter's coordinates start … start + count, wherever chunks begin."""
    counters = -(-n_features // 256)  # a Philox counter yields 4 words of 64 bits
    generator = _philox("rademacher", seed, name)
    generator.advance(start * counters)
    words = generator.random_raw(count * counters * 4).astype("<u8").view(np.uint8)
    bits_P_D = np.unpackbits(words.reshape(count, -1), axis=1, bitorder="little")[:, :n_features]
    return bits_P_D.astype(np.float32) * 2 - 1


def _philox(kind: str, seed: int, name: str) -> np.random.Philox:
    digest = hashlib.sha256(f"siftune {kind} {seed} {name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
