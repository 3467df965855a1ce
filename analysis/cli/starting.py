"""What every command begins with. Light: imports nothing that takes a second until it is asked to."""

import sys
import time
from typing import TYPE_CHECKING

from harness.options import Options

if TYPE_CHECKING:
    from harness.subject.prepared import Subject

STARTED = time.perf_counter()


def note(text: str) -> None:
    """To stderr, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def load_subject(options: Options) -> "Subject":
    """Model, text and windows; says how long that took since the command began."""
    from harness.subject.imports import import_quickly

    import_quickly()
    from harness.subject.prepared import prepare

    subject = prepare(options)
    note(f"loaded {subject.loaded.name} and {subject.text.name} in {time.perf_counter() - STARTED:.1f} s")
    return subject
