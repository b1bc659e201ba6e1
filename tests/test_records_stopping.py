"""A Ctrl-C that Python loses in a library's clean-up still stops the work at its next step."""

from __future__ import annotations

import signal

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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_ctrl_c_stops_the_next_step() -> None:
    done: list[int] = []
    with ctrl_c_remembered():
        with pytest.raises(KeyboardInterrupt):
            work(done)
        assert done == [0]
    check_stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
