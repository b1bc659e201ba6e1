"""Ctrl-C that can't get lost.

Python raises it wherever the program happens to be; where that is a library's clean-up, it is forgotten. So it is remembered too,
and long work asks between its steps; where it is told as an error of a library's own (an import that failed), it is made Ctrl-C
again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()


@contextmanager
def ctrl_c_remembered() -> Iterator[None]:
    """While open, in the main thread: Ctrl-C raises KeyboardInterrupt as ever, and `check_stop` does so again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    before, hook = signal.signal(signal.SIGINT, _stop), sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
    try:
        yield
    except Exception as error:
        check_stop(error)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
        _asked.clear()


def check_stop(error: Exception | None = None) -> None:
    """Raise KeyboardInterrupt where a person has asked to stop, from the `error` that a library made of it."""
    if _asked.is_set():
        raise KeyboardInterrupt from error


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt
