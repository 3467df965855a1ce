"""Seconds that a pass may take: a cache of other people may never come back."""

import faulthandler
import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kvdelta.schemes.errors import UserError

AGAIN = 1.0  # seconds after which it is interrupted again, where it went on
GRACE = 30.0  # seconds after which the process ends, where what hangs cannot be interrupted


class TookTooLong(BaseException):
    """It was interrupted. No Exception: what hangs may catch these."""


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
    over = False

    def stop(*_: Any) -> None:
        if not over:
            raise TookTooLong(f"it took longer than {seconds:g} s (--time-limit)")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        with suppress(io.UnsupportedOperation, AttributeError, RuntimeError):  # a stderr that is no file
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or 2)
        yield
    finally:
        over = True
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
