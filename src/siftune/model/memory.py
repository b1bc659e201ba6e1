"""What a process keeps of memory between batches: enough not to fetch it anew, not so much that it grows with every new shape.

oneDNN, which multiplies matrices in 16 bits on CPUs, makes a product for every shape that it meets, and two caches keep up to a thousand
each: its own of products, most of a megabyte each, and torch's of their descriptions, a quarter. A batch of unlike rows brings some thirty new shapes, so memory
would grow with the pool, by hundreds of megabytes. A batch needs its thirty in every layer of the model, and seldom again.
"""

from __future__ import annotations

import ctypes
import os

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables that limit oneDNN's cache of products and torch's of their descriptions. Both are read at the first product."""
PRODUCTS = 64
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt: what it keeps at its top when freed; from which size on memory comes from the system and goes back to it."""
KEPT, FROM_SYSTEM = 2**31 - 1, 2**23
"""2 GiB and 8 MiB. Pages that come from the system cost a fault each, every time; what stays keeps the place of other things."""


def bound_memory() -> None:
    """Limit the caches, where the person set no limit of their own, and have glibc keep freed memory for the next batch. For CPUs."""
    for name in CACHES:
        os.environ.setdefault(name, str(PRODUCTS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such thing
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, FROM_SYSTEM)
