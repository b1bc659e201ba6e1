"""What the hostile tests share: a limit on every case, and what a person may be told."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

import siftune

HANG_SECONDS = 120.0
UNPRINTABLE = {chr(code) for code in [*range(32), 127, *range(128, 160), 0x202E, 0x2066, 0x2028]} - {"\n"}


@contextmanager
def no_hang() -> Iterator[None]:
    """End the whole test process, with a trace of where it hung, where the block lasts too long."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def command(*words: str | Path) -> Result:
    """A siftune command in this process."""
    from siftune.cli import app

    with no_hang():
        return CliRunner().invoke(app, list(map(str, words)))


def check_told(result: Result, *, expected: bool = True) -> None:
    """Exit code 2 and one sentence, that says what to do; `expected`: one that was written for the case."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert not UNPRINTABLE & set(errors[0])
    assert not (expected and "did not expect" in errors[0]), errors[0]


def limited(code: str, *, megabytes: int, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh Python whose address space is limited: what needs more ends in a MemoryError, not in swap."""
    package = siftune.__file__
    assert package is not None
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20}, {megabytes << 20}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(package).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", limit + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
