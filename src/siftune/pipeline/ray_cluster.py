"""The connection to a Ray cluster, made before any work is spent: an address that is wrong is known at once."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from siftune.records.errors import SiftuneError

AUTO = "auto"
"""The address that stands for a cluster that is found on this machine, or else started."""

STARTED_WITH = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""How a cluster is started here, unless the environment says otherwise: it tells nobody of its use, and its actors, which do the work
that is waited for, aren't put behind everything else on the machine (Ray's own choice is a niceness of 15)."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster while the block lasts; None: to none. A connection that was there before is used and stays.

    Raises SiftuneError where Ray isn't installed or there is no such cluster.
    """
    if address is None:
        yield
        return
    if importlib.util.find_spec("ray") is None:
        raise SiftuneError(
            "Ray is not installed", where="--ray", todo="Install it: pip install 'siftune[ray]'"
        )
    for name, value in STARTED_WITH.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield
        return
    place = None if address == AUTO else address
    try:
        ray.init(address=place, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise SiftuneError(
            f"there is no such Ray cluster ({str(error).strip().splitlines()[0]})",
            where=f"--ray {address}",
            todo=f"Check the address; --ray {AUTO} takes one that runs on this machine, or starts one",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
