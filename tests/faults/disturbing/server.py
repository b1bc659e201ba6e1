"""A process that has imported torch and siftune once and forks a siftune command for every line that it reads.

    {"start": [arguments], "log": file, "patch": {"module.NAME": value}, "at": [call, k, when, signal], "tally": file}   -> pid
    {"wait": pid, "seconds": s}                                                                    -> exit status, or null

`at` sends the command a signal just before or after its k-th call of `os.replace` or `os.fsync`, or lets it fail there (`ENOSPC`);
`tally` is where it leaves how many calls there were. A status below 0 is the signal that ended the command.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = (
    "torch",
    "peft",
    "transformers",
    "siftune.cli",
    "siftune.pipeline.run",
    "siftune.pipeline.training",
    "siftune.pipeline.vectors",
    "siftune.pipeline.planning",
    "siftune.pipeline.machine",
    "siftune.pipeline.working",
    "siftune.pipeline.comparing",
    "siftune.pipeline.reporting",
    "siftune.datastore.verify",
    "siftune.proof.train",
    "transformers.trainer",
)
CALLS = ("replace", "fsync")


def main() -> None:
    """Serve until the input ends."""
    for name in WARM:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _started(asked) if "start" in asked else _waited(asked["wait"], asked["seconds"])
        print(json.dumps(answer), flush=True)


def _started(asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70  # what a command that let an exception out ends with
    try:
        os.setsid()
        out = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for place, value in asked.get("patch", {}).items():
            module, _, name = place.rpartition(".")
            setattr(importlib.import_module(module), name, value)
        seen = _watched(asked.get("at"))
        status = _command(asked["start"])
        if "tally" in asked:
            Path(asked["tally"]).write_text(json.dumps(seen), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _command(arguments: list[str]) -> int:
    from siftune.cli import main as siftune

    sys.argv = ["siftune", *arguments]
    try:
        siftune()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0


def _watched(at: list[Any] | None) -> dict[str, int]:
    """Count the calls that make files appear, and let the fault `at` one of them happen."""
    seen = dict.fromkeys(CALLS, 0)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            seen[name] += 1
            here = at is not None and at[0] == name and at[1] == seen[name]
            if here and at[2] == "before":
                _happen(at[3])
            result = real(*arguments, **named)
            if here and at[2] == "after":
                _happen(at[3])
            return result

        return call

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))
    return seen


def _happen(what: str) -> None:
    if what == "ENOSPC":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.Signals[what])


def _waited(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


if __name__ == "__main__":
    main()
