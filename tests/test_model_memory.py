"""Memory stays where it is, however many shapes come by."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from siftune.model.load import choose_dtype

SHAPES = """
import psutil, torch
from siftune.model.memory import bound_memory
bound_memory()
torch.set_num_threads(1)
weight = torch.randn(576, 576).bfloat16()
held = lambda: psutil.Process().memory_info().rss
for n in range(300):
    torch.ones(100 + n, 576).bfloat16() @ weight
    if n == 100: before = held()
print(held() - before)
"""
"""Prints by how many bytes 200 more shapes of a product let a process grow."""


def growth(**settings: str) -> int:
    """In a process of its own: both caches read their limit once."""
    clean = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    environment = {**clean, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        [sys.executable, "-c", SHAPES], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_new_shapes_of_products_leave_nothing_behind():
    assert growth() < 64 * 2**20


def test_limits_that_the_person_set_hold():
    """And the test above can fail: with torch's own limits each new shape is kept, where siftune computes in bf16 at all."""
    own = growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert own > 100 * 2**20 or choose_dtype("auto", torch.device("cpu"))[0] == "fp32"
