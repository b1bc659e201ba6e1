"""What only a machine with a GPU can show: a run there is that of the CPU but for rounding, and 16 bits work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline_helpers import recipe
from siftune.datastore.pool import Pool
from siftune.datastore.store import Datastore
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

QUIET = Reporter(quiet=True)


def test_a_run_on_a_gpu_is_that_of_a_cpu_but_for_rounding(given: dict[str, Any], tmp_path: Path) -> None:
    features, chosen = [], []
    for device in ("cpu", "cuda"):
        found = run(recipe(given, device=device, dtype="fp32", workers=1), tmp_path / device, reporter=QUIET)
        chosen.append({row["_siftune"]["row"] for row in found.selections["sums"].rows()})
        store = Datastore(tmp_path / device / "datastore/less/1", Pool(tmp_path / device / "pool").plan)
        features.append(np.concatenate([store.features(shard) for shard in store.plan.shards]))
    cosine_N = np.nansum(features[0] * features[1], axis=1)[~np.isnan(features[0][:, 0])]
    assert cosine_N.min() > 0.95  # Adam turns rounding of tiny gradients into whole steps of the warm-up
    assert len(chosen[0] & chosen[1]) > 0.8 * len(chosen[0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits_on_a_gpu(dtype: str, given: dict[str, Any], tmp_path: Path) -> None:
    found = run(
        recipe(given, device="cuda", dtype=dtype, gradient_checkpointing=True),
        tmp_path / "RUN",
        reporter=QUIET,
    )
    assert found.selections["sums"].summary["n_selected"]
