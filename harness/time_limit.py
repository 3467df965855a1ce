"""Seconds that a pass may take: a cache of other people may never come back."""

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemes.errors import UserError

GRACE = 30.0  # seconds after which the process ends, where what hangs cannot be interrupted


class TookTooLong(Exception):
    """It was interrupted."""


def check_time_limit() -> None:
    """UserError where none can be kept."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise UserError("a time limit needs a system with timers (no Windows), and a run in the program's main thread")


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """TookTooLong after so many seconds. What does not return to Python by then, such as a kernel that hangs, ends the process a while
    later, and stderr shows where it was."""
    if seconds is None:
        yield
        return

    def stop(*_: Any) -> None:
        raise TookTooLong(f"it took longer than {seconds:g} s (--time-limit)")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
