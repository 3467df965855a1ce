"""What a scheme or a cache may raise in a row of its own, and how the row says so."""

from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.time_limit import TookTooLong

RAISED = (Exception, SystemExit, TookTooLong)
"""Code of other people may raise what it likes, call exit(), and never come back. An interrupt is none of it."""


def reason_of(error: BaseException) -> str:
    """Kind and words of what was raised, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
