"""What a person sees: progress on stderr, tables on stdout."""

import math
import os
import sys
import time
from typing import TYPE_CHECKING

from kvdelta.analysis.cli import log
from kvdelta.analysis.cli.starting import note, redraw
from kvdelta.analysis.reading.escaping import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvdelta.harness.runner import Progress

SHOWN = 8  # contenders in a line of progress
SILENT = 30.0  # seconds, at least, between lines of samples where there is no terminal
COLUMNS = 80  # of a terminal that does not say how wide it is


def progress(total_windows: int, passes: int) -> "Progress":
    """Window, running perplexity and time left: one line redrawn on a terminal, else a line a batch of windows."""
    from kvdelta.harness.runner import Progress

    started = time.monotonic()
    losses: dict[str, list[tuple[float, int]]] = {}
    first: int | None = None

    def on_pass(windows: range, contender: int, label: str, nll: float) -> None:
        nonlocal first
        first = windows.start if first is None else first  # a continued run begins later
        losses.setdefault(label, []).append((nll, len(windows)))
        log.event("scored", windows=[windows.start, windows.stop], of=total_windows, scheme=label, nll=nll)
        done = windows.start - first + len(windows) * (contender + 1) / passes  # in windows
        left = total_windows - first - done
        seconds = time.monotonic() - started
        last = windows.stop == total_windows and contender == passes - 1
        eta = f"took {duration(seconds)}" if last else f"about {duration(seconds / done * left)} left"
        if sys.stderr.isatty():
            before, after = f"window {windows.stop}/{total_windows}  ", f"  ppl {_perplexity(losses[label])}  {eta}"
            (note if last else redraw)(_on_one_row(before, printable(label), after))
        elif contender == passes - 1:
            shown = list(losses.items())[:SHOWN]
            running = "  ".join(f"{name} {_perplexity(values)}" for name, values in shown)
            more = f"  and {len(losses) - SHOWN} more" if len(losses) > SHOWN else ""
            note(f"window {windows.stop}/{total_windows}  ppl so far: {running}{more}  {eta}")

    return Progress(on_pass, note)


def counted() -> "Callable[[int, int, str], None]":
    """For what goes sample by sample: how many are done, of what, and the time left; one line redrawn on a terminal, else a line now and
    then."""
    began: list[tuple[float, int]] = []  # what came before the first sample is no measure of the others
    spoken = time.monotonic()

    def on_sample(done: int, planned: int, what: str) -> None:
        nonlocal spoken
        now = time.monotonic()
        began.append((now, done))
        passed, since = now - began[0][0], done - began[0][1]
        eta = f"about {duration(passed / since * (planned - done))} left" if since else ""
        eta = f"took {duration(passed)}" if done == planned else eta
        before, after = f"sample {done}/{planned}  ", f"  {eta}"
        if sys.stderr.isatty():
            (note if done == planned else redraw)(_on_one_row(before, printable(what), after))
        elif done == planned or now - spoken > SILENT:
            spoken = now
            note(before + what + after)

    return on_sample


def _on_one_row(before: str, label: str, after: str) -> str:
    """With the label cut to what the row has left: what wraps to a second row is not erased when it is redrawn."""
    from rich.cells import cell_len, set_cell_size

    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    room = (columns or COLUMNS) - 1  # a full row moves the cursor to the next one
    left = max(0, room - cell_len(before + after))
    if cell_len(label) > left:
        label = set_cell_size(label, left - 1) + "…" if left else ""
    line = before + label + after
    return line if cell_len(line) <= room else set_cell_size(line, room)


def _perplexity(losses: list[tuple[float, int]]) -> str:
    """Of mean losses, each of so many windows."""
    mean = sum(nll * windows for nll, windows in losses) / sum(windows for _, windows in losses)
    return "failed" if math.isnan(mean) else f"{math.exp(min(700.0, mean)):.3f}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def print_table(header: list[str], body: list[list[str]], title: str = "") -> None:
    """As wide as its content: a number that a narrow terminal cuts would be another number."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(content: str) -> Text:  # rich reads a string as markup
        return Text(printable(content))

    table = Table(
        box=box.SIMPLE_HEAD, title=text(title) if title else None, title_justify="left", pad_edge=False, highlight=False
    )
    for i, name in enumerate(header):
        table.add_column(text(name), justify="left" if i == 0 else "right", no_wrap=True)
    for row in body:
        table.add_row(*map(text, row))
    Console(width=10_000, highlight=False).print(table)
