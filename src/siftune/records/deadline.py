"""A limit on how long a foreign program may take: a chat template, a pattern out of a config file.

It works by an alarm of the operating system, so in the main thread alone; elsewhere nothing is limited. What computes inside one
call of C that never looks at signals is stopped only when that call ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLongError(Exception):
    """What `within` raises when the time is over; the text says how long that was."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Run the block for at most `seconds` of wall clock, else raise TookTooLongError out of it. Not to be nested."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TookTooLongError(f"it took longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
