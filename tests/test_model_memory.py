"""Memory stays where it is, however many shapes come by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHAPES = """
import ctypes, torch
from siftune.model.memory import bound_memory
class Held(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "a b c d hblkhd e f uordblks g h".split()]
bound_memory()
torch.set_num_threads(1)
c = ctypes.CDLL(None)
c.mallinfo2.restype = Held
def held(): return c.mallinfo2().uordblks + c.mallinfo2().hblkhd
weight = torch.randn(576, 576).bfloat16()
for n in range(300):
    torch.ones(100 + n, 576).bfloat16() @ weight
    if n == 100: before = held()
print(held() - before)
"""
"""Prints by how many bytes 200 more shapes of a product let the heap of a process grow."""


def growth(**settings: str) -> int:
    """In a process of its own: both caches read their limit once."""
    clean = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", SHAPES],
        env={**clean, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc tells what it holds")
def test_new_shapes_of_products_leave_nothing_behind():
    assert growth() < 4 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc tells what it holds")
def test_limits_that_the_person_set_hold():
    """And the test above can fail: with torch's own limits each new shape is kept, where the processor has such products at all."""
    own = growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert own > 40 * 2**20 or "avx512_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
