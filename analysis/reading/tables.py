"""What every table is made of: a header and cells of text, and numbers as people read them."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from analysis.reading.escaping import markdown
from analysis.reading.rows import Row

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


def csv_text(header: list[str], body: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *body])
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
