"""What every command begins with. Light: imports nothing that takes a second until it is asked to."""

import shlex
import sys
import time
from typing import TYPE_CHECKING

from kvdelta.analysis.cli import log
from kvdelta.analysis.reading.escaping import markdown, printable
from kvdelta.harness.options import Options
from kvdelta.harness.processes import rank, size

if TYPE_CHECKING:
    from kvdelta.harness.subject.prepared import Subject

STARTED = time.perf_counter()

_drawn = False  # does the cursor stand behind a line of progress, which the next line replaces?


def say(*lines: str, format: str = "table") -> None:
    """To stdout, where results go; each is one line, whatever is in it. format "md": as Markdown."""
    print(*map(markdown if format == "md" else printable, lines), sep="\n")


def note(text: str) -> None:
    """To stderr, where progress goes: one line, in the place of a line of progress that stands there. Of several processes
    the first says it."""
    if rank() == 0:
        log.event("note", text=text)
        _replace(text, "\n")


def complain(text: str) -> None:
    """What ended the command, from whichever process."""
    log.event("error", text=text)
    which = f", process {rank()} of {size()}" if rank() else ""
    _replace(f"kvdelta{which}: {text}", "\n")


def redraw(text: str) -> None:
    """To a terminal's stderr: a line of progress in the place of the one before."""
    if rank() == 0:
        _replace(text, "")


def _replace(text: str, end: str) -> None:
    global _drawn
    erased = "\r\x1b[2K" if _drawn else ""
    _drawn = not end
    print(f"{erased}{printable(text)}", end=end, file=sys.stderr, flush=True)


def typed() -> str:
    """The command as it was given; bytes that are no text as escapes, since records are text."""
    return shlex.join(["kvdelta", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def load_subject(options: Options) -> "Subject":
    """Model, text and windows; says how long that took since the command began. UserError for what cannot be had."""
    from kvdelta.harness.records.provenance import versions
    from kvdelta.harness.subject.imports import import_quickly

    versions()  # a checkout that is not installed says so before anything is loaded
    import_quickly()
    from kvdelta.harness.subject.prepared import prepare

    subject = prepare(options)
    note(f"loaded {subject.loaded.name} and {subject.text.name} in {time.perf_counter() - STARTED:.1f} s")
    return subject
