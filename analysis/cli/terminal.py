"""What a person sees: progress on stderr, tables on stdout."""

import math
import sys
import time

from analysis.cli.starting import note
from harness.runner import Progress

SHOWN = 8  # contenders in a line of progress


def progress(total_windows: int, passes: int) -> Progress:
    """Window, running perplexity and time left: one line redrawn on a terminal, else a line a window."""
    started = time.monotonic()
    losses: dict[str, list[float]] = {}
    scored, first = 0, None

    def on_pass(window: int, contender: int, label: str, nll: float) -> None:
        nonlocal scored, first
        first = window if first is None else first  # a continued run begins later
        scored += 1
        losses.setdefault(label, []).append(nll)
        left = (total_windows - first) * passes - scored
        seconds = (time.monotonic() - started) / scored * left
        eta = f"about {duration(seconds)} left" if left else f"took {duration(time.monotonic() - started)}"
        if sys.stderr.isatty():
            line = f"window {window + 1}/{total_windows}  {label}  ppl {_perplexity(losses[label])}  {eta}"
            print(f"\r\x1b[2K{line}", end="" if left else "\n", file=sys.stderr, flush=True)
        elif contender == passes - 1:
            shown = list(losses.items())[:SHOWN]
            running = "  ".join(f"{name} {_perplexity(values)}" for name, values in shown)
            more = f"  and {len(losses) - SHOWN} more" if len(losses) > SHOWN else ""
            note(f"window {window + 1}/{total_windows}  ppl so far: {running}{more}  {eta}")

    return Progress(on_pass, note)


def _perplexity(losses: list[float]) -> str:
    mean = sum(losses) / len(losses)
    return "failed" if math.isnan(mean) else f"{math.exp(min(700.0, mean)):.3f}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def print_table(header: list[str], body: list[list[str]], title: str = "") -> None:
    """As wide as its content: a number that a narrow terminal cuts would be another number."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    Console(width=10_000, highlight=False).print(table)
