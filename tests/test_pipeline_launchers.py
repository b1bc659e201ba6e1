"""Workers that a launcher starts: torchrun for real on a CPU; which GPU each would take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline_helpers import LASTING, digests, recipe, write_inputs
from siftune.pipeline import machine
from siftune.pipeline.machine import on_own_device
from siftune.pipeline.run import run
from siftune.records.recipe import Recipe


def test_torchrun_starts_workers_that_share_the_shards(tmp_path: Path) -> None:
    given = {**write_inputs(tmp_path / "inputs"), "shard_rows": 30, "workers": 1, "epochs": 1}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(recipe(given), alone)
    run(recipe(given), shared, until="warmup")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*command, "-m", "siftune", "worker", str(shared), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert digests(shared, "datastore") == digests(alone, "datastore")
    run(recipe(given), shared)
    assert digests(shared, *LASTING) == digests(alone, *LASTING)
    assert not list(shared.rglob("*.claim"))


@pytest.mark.parametrize(
    ("number", "visible", "takes"),
    [("0", 4, "cuda:0"), ("3", 4, "cuda:3"), ("3", 1, "cuda:0"), ("5", 4, "cuda:1"), (None, 4, "cuda")],
)
@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_each_takes_the_gpu_of_its_number(
    name: str, number: str | None, visible: int, takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(other, raising=False)
    if number is not None:
        monkeypatch.setenv(name, number)
    monkeypatch.setattr(machine, "device_of", lambda recipe: torch.device(recipe.device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert on_own_device(Recipe(device="cuda")).device == takes
    assert on_own_device(Recipe(device="cpu")).device == "cpu"
