"""The command line."""

from __future__ import annotations

import signal
import sys

from siftune.cli import planning, proving, reporting, selecting, storing, working
from siftune.cli.app import app, stopped

__all__ = ["app", "main", "planning", "proving", "reporting", "selecting", "storing", "working"]


def main() -> None:
    """The entry point of the `siftune` command."""
    # Before a command has begun, nothing has to be put down first
    signal.signal(signal.SIGINT, lambda *_: stopped())
    app(args=_spread(sys.argv[1:]))


def _spread(arguments: list[str]) -> list[str]:
    """`--pool a b` as `--pool a --pool b`, so that shell patterns work; after a run directory, where a command has one.

    And `--ray` alone as `--ray auto`: typer knows no option whose value may be left out.
    """
    spread: list[str] = []
    flag: str | None = None
    for place, argument in enumerate(arguments):
        if argument.startswith("-"):
            flag = argument if argument in _SEVERAL and (arguments[0] in _NO_RUN_DIR or spread[1:]) else None
        elif flag is not None and not arguments[place - 1].startswith("-"):
            spread.append(flag)
        spread.append(argument)
        if argument == "--ray" and (arguments[place + 1 :] or ["-"])[0].startswith("-"):
            spread.append("auto")
    return spread


_SEVERAL = {"--pool", "--target", "--lora-targets", "--weights", "--test", "--also"}
_NO_RUN_DIR = {"run", "plan", "doctor"}
