"""A Ctrl-C that Python loses in a library's clean-up still stops the work at its next step."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from siftune.pipeline.progress import Reporter
from siftune.records.stopping import check_stop, ctrl_c_remembered


class CleanedUp:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def work(done: list[int]) -> None:
    with Reporter(quiet=True).bar("work", 3, "steps") as advance:
        for step in range(3):
            CleanedUp()  # Python prints what is raised in here, and goes on
            done.append(step)
            advance(1)


def test_a_lost_ctrl_c_stops_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    with ctrl_c_remembered():
        with pytest.raises(KeyboardInterrupt):
            work(done)
        assert done == [0]
    check_stop()
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_a_command_begins_is_told_like_any_other() -> None:
    early = "cli.app = lambda args: signal.raise_signal(signal.SIGINT)"
    code = f"import signal, sys; from siftune import cli; {early}; sys.argv = ['siftune', 'run', '--quiet']; cli.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.endswith("go on with the same command:\n  siftune run --quiet\n")
    assert "Traceback" not in ended.stderr
