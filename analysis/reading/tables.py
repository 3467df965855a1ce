"""What every table is made of: a header and cells of text, and numbers as people read them."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kvdelta.analysis.reading.escaping import markdown, printable
from kvdelta.analysis.reading.rows import Row
from kvdelta.harness.records.run import Settings

RowT = TypeVar("RowT", bound=Row)
Table = tuple[list[str], list[list[str]]]
"""Header and body."""


def table(rows: Sequence[RowT], columns: Mapping[str, Callable[[RowT], str]]) -> Table:
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def as_markdown(header: list[str], body: list[list[str]]) -> str:
    escaped = [[markdown(cell) for cell in line] for line in [header, *body]]
    lines = ["| " + " | ".join(line) + " |" for line in escaped]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines) + "\n"


def csv_text(header: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """A terminal shows it too, so no cell has what steers one."""
    out = io.StringIO()
    lines = [[printable(cell) if isinstance(cell, str) else cell for cell in line] for line in [header, *body]]
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞"
    if value == 0:
        return "0"
    if abs(value) >= 1000 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def interval(figure: float, low: float, high: float, digits: int = 4) -> str:
    """A figure with its 95 % interval, where it has one."""
    shown = signed(figure, digits)
    return shown if math.isnan(low) else f"{shown} [{signed(low, digits)}, {signed(high, digits)}]"


def signed(value: float, digits: int) -> str:
    """With its sign, but no sign on what rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def chance(p: float) -> str:
    """A p-value to the digits that a t-test over some windows can be believed to have."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def windows_of(settings: Settings, count: int) -> str:
    """How many windows, and their sizes; the stride where it is not the score length."""
    stride = f"stride {settings.stride}, " if settings.stride != settings.score_length else ""
    prefix = settings.window_length - settings.score_length
    return f"{count} window{'s' * (count != 1)}, {stride}prefix {prefix} + suffix {settings.score_length} tokens"


def overlap(settings: Settings) -> list[str]:
    """What windows share, in a line; none where they share nothing."""
    advance = settings.advance
    if advance is None or advance >= settings.window_length:
        return []
    if settings.independent:
        return [f"windows begin {advance} tokens apart: their prefixes overlap other windows, no token is scored twice"]
    return [
        f"windows begin {advance} tokens apart and score {settings.score_length - 1}: tokens are scored twice, so windows "
        f"are no independent samples and there are no intervals; --stride {settings.score_length - 1} or more gives them"
    ]
