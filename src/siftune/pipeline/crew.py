"""Several processes on the shards of one run: the one that was started starts others where that pays, and all write the same bytes.

On a CPU a model of this kind gains little from threads, so `threads` are shared out among `workers`; on a machine with GPUs each
worker has one. How many are really started depends on what is left to do and on memory; the threads of each do not,
so neither do the bytes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from siftune.pipeline.apart import worker_command
from siftune.pipeline.estimate import WORTH
from siftune.pipeline.machine import device_of
from siftune.pipeline.session import Session

LOOK_AFTER, PATIENCE = 3.0, 60.0
"""Seconds: of work after which its rate is known, waited for others at the end."""
MEMORY = 0.8
"""Of what is free, others may take so much."""


class Crew:
    """The other processes of a run. A context: at its end they are waited for, on an error they are stopped."""

    def __init__(self, session: Session):
        self.session = session
        self.wanted = (session.recipe.workers or 1) - 1
        self.processes: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        end = time.monotonic() + (PATIENCE if kind is None else 0.0)
        for process, log in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            if kind is None and process.returncode:
                last = said.splitlines()[-1] if said else f"exit status {process.returncode}"
                self.session.reporter.warn(f"a worker stopped early, its shards were made by others: {last}")
            log.unlink(missing_ok=True)

    def watching(self, advance: Callable[[int], None], rows: int) -> Callable[[int], None]:
        """`advance`, which starts the others once what is left of `rows` is known to be worth it."""
        begun, done = time.monotonic(), 0

        def told(n: int) -> None:
            nonlocal done
            advance(n)
            done += n
            elapsed = time.monotonic() - begun
            alone = bool(self.wanted) and not self.processes
            if alone and done and elapsed > LOOK_AFTER and (rows - done) * elapsed / done > WORTH:
                self._start()

        return told

    def _start(self) -> None:
        on_gpus = device_of(self.session.recipe).type == "cuda"
        need, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
        room = torch.cuda.device_count() - 1 if on_gpus else int(MEMORY * free / max(1, need))
        n = min(self.wanted, room)
        if n < self.wanted:
            why = "there are no more GPUs" if on_gpus else f"memory ({free / 1e9:.1f} GB free) holds no more"
            self.session.reporter.note(f"{n + 1} of {self.wanted + 1} workers: {why}")
        self.wanted = n
        for k in range(1, n + 1):
            log = self.session.path / f".worker-{k}.log.part"  # one left behind goes with the next command
            environment = {**os.environ, "SIFTUNE_STARTED_BY": str(os.getpid())}
            if on_gpus:
                given = os.environ.get("CUDA_VISIBLE_DEVICES")
                environment["CUDA_VISIBLE_DEVICES"] = given.split(",")[k] if given else str(k)
            with log.open("wb") as file:
                process = subprocess.Popen(
                    worker_command(self.session), stdout=file, stderr=file, env=environment
                )
            self.processes.append((process, log))
