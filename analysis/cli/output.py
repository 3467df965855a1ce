"""Rows of a measurement on stdout: for programs, or as titled tables for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvdelta.analysis.cli.starting import say
from kvdelta.analysis.reading.escaping import markdown

if TYPE_CHECKING:
    from kvdelta.analysis.reading.rows import Row
    from kvdelta.analysis.reading.tables import Table
    from kvdelta.harness.records.run import Header


def show_rows(
    record: "Header",
    rows: "Sequence[Row]",
    shown: "Mapping[str, Table]",
    format: str,
    legend: str,
    heading: "Sequence[str] | None" = None,
) -> None:
    """rows: every figure, for programs; shown: titled tables for people, below the record's heading, or the one given."""
    from kvdelta.analysis.reading import measurement_tables

    if format in ("json", "csv"):
        print(measurement_tables.as_text(rows, format), end="")
        return
    say(*(heading or measurement_tables.heading(record)), format=format)
    for title, table in shown.items():
        show_table(title, table, format)
    if format == "table":
        print(legend)


def show_table(title: str, table: "Table", format: str) -> None:
    """One, for people."""
    from kvdelta.analysis.cli import terminal
    from kvdelta.analysis.reading import tables

    if format == "md":
        print("\n".join(["", f"**{markdown(title)}**", ""] if title else [""]))
        print(tables.as_markdown(*table), end="")
    else:
        terminal.print_table(*table, title)
