"""siftune commands as processes of their own, forked from a server so that each starts in milliseconds."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[2]
LONGEST = 180.0
"""Seconds that a command may take: more is a hang."""


class Ended(NamedTuple):
    """How a command ended: exit status, below 0 the signal; what it printed."""

    status: int
    text: str

    @property
    def clear(self) -> bool:
        """An error as a sentence: exit code 2, no traceback."""
        return self.status == 2 and "error: " in self.text and "Traceback" not in self.text


@dataclass
class Command:
    """One that was started."""

    forks: Forks
    pid: int
    log: Path
    found: Ended | None = None

    def signal(self, number: signal.Signals) -> None:
        """To the command; until it has been waited for, its id is still its own."""
        if self.found is None:
            os.kill(self.pid, number)

    def ended(self, seconds: float = LONGEST) -> Ended | None:
        """Wait for the end; None where it does not come."""
        if self.found is not None:
            return self.found
        status = self.forks.ask({"wait": self.pid, "seconds": seconds})
        if status is not None:
            self.found = Ended(status, self.log.read_text(encoding="utf-8", errors="replace"))
        return self.found

    def finished(self) -> Ended:
        """Wait for the end; a command that does not come to it is killed, and an AssertionError."""
        found = self.ended()
        if found is None:
            self.signal(signal.SIGKILL)
            self.ended(10)
            raise AssertionError(f"a command hangs: {self.log.read_text(encoding='utf-8')}")
        return found


class Forks:
    """The fork server, as a context; `folder` takes what commands print."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, itertools.count()

    def __enter__(self) -> Forks:
        path = os.pathsep.join([str(TESTS), str(TESTS / "faults"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "disturbing.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline().strip() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.communicate("")

    def ask(self, what: dict[str, Any]) -> Any:
        """One question to the server."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, *arguments: object, **fault: Any) -> Command:
        """Start a command. fault: `patch`, `at`, `tally` of `disturbing.server`"""
        log = self.folder / f"{next(self.count)}.log"
        pid = self.ask({"start": [str(a) for a in arguments], "log": str(log), **fault})
        return Command(self, pid, log)

    def run(self, *arguments: object, **fault: Any) -> Ended:
        """A command from start to end."""
        return self.start(*arguments, **fault).finished()

    def must(self, *arguments: object) -> float:
        """A command that has to succeed; the seconds that it took."""
        begun = time.monotonic()
        found = self.run(*arguments)
        assert found.status == 0, f"{arguments}: {found.text}"
        return time.monotonic() - begun
