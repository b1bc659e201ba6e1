"""The sketch's map in windows against buckets drawn weight by weight: error of cosines by D, and time, on the same gradients.

OMP_NUM_THREADS=1 python benchmarks/projection.py RUN WORK          RUN: a run with direction sgd and a checkpoint; it is only read

Exact gradients of a few rows on the run's model under its first checkpoint, the base in bf16. Buckets drawn one by one are the plain count sketch (Charikar et al. 2002), applied as a sparse
product, as siftune did before it had windows. Exact gradients are kept in WORK.
"""

from __future__ import annotations

import hashlib
import warnings
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accuracy_exact import Rows, asked, gradients, timed
from accuracy_measures import cosine_error
from record import write_result
from siftune.gradients.projection import Projector, make_projector

NUMBERS = (1024, 2048, 4096, 8192)
SEEDS = 5


class OneByOne(Projector):
    """A bucket and a sign for each coordinate by itself, as CSR matrices."""

    def __init__(self, n_features: int, seed: int):
        super().__init__("sketch", n_features, seed)
        self._maps: dict[str, Tensor] = {}

    def add(self, name: str, direction_B_P: Tensor, into_B_D: Tensor) -> None:
        if name not in self._maps:
            self._maps[name] = self._map(name, direction_B_P.shape[1])
        into_B_D += (self._maps[name] @ direction_B_P.T).T

    def _map(self, name: str, size: int) -> Tensor:
        key = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        bucket_P = draw.integers(self.n_features, size=size)
        sign_P = draw.integers(2, size=size).astype(np.float32) * 2 - 1
        order = np.argsort(bucket_P, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(bucket_P, minlength=self.n_features))])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                torch.from_numpy(starts.astype(np.int32)),
                torch.from_numpy(order.astype(np.int32)),
                torch.from_numpy(sign_P[order]),
                size=(self.n_features, size),
            )


def main() -> None:
    given = asked(__doc__, pool_rows=96).parse_args()
    rows = Rows(given.run, given.pool_rows, given.target_rows)
    exact_N_P, notes = gradients(rows, "bf16", 1, given.work)
    exact_N_N = exact_N_P @ exact_N_P.T
    found: dict[str, Any] = {}
    for n in NUMBERS:
        for name in ("windows", "one by one"):
            errors, seconds = [], []
            for seed in range(SEEDS):
                windows = name == "windows"
                projector = (
                    make_projector("sketch", notes["sizes"], n, seed) if windows else OneByOne(n, seed)
                )
                features_N_D, a_row = timed(projector, exact_N_P, notes["sizes"])
                errors.append(round(cosine_error(features_N_D, exact_N_N), 5))
                seconds.append(a_row)
            found.setdefault(str(n), {})[name] = {
                "cosine_error": round(fmean(errors), 5),
                "of_each_seed": errors,
                "cpu_ms_a_row": round(1000 * float(np.median(seconds)), 3),
            }
            print(n, name, found[str(n)][name], flush=True)
    values = {
        "rows": len(exact_N_P),
        "coordinates": exact_N_P.shape[1],
        "gradient_cpu_seconds_a_row": notes["seconds"],
    }
    print(write_result("projection", {**values, "by_features": found}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
