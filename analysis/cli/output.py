"""Rows of a measurement on stdout: for programs, or as titled tables for people."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvdelta.analysis.cli.starting import say
from kvdelta.analysis.reading.escaping import markdown
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from kvdelta.analysis.reading.rows import Row
    from kvdelta.analysis.reading.tables import Table
    from kvdelta.harness.records.run import Header


FOR_PROGRAMS = ("json", "csv", "parquet")


def print_rows(rows: "Sequence[Mapping[str, Any]]", format: str) -> None:
    """Every figure of every row on stdout, in one of FOR_PROGRAMS. UserError for parquet on a terminal, or without its library."""
    from kvdelta.analysis.reading import measurement_tables

    if format != "parquet":
        print(measurement_tables.as_text(rows, format), end="")
        return
    if sys.stdout.isatty():
        raise UserError("parquet is no text for a terminal: send it to a file, > rows.parquet")
    sys.stdout.flush()
    sys.stdout.buffer.write(as_parquet(rows))
    sys.stdout.buffer.flush()


def as_parquet(rows: "Sequence[Mapping[str, Any]]") -> bytes:
    """What is no single value, a list or a mapping, as JSON. UserError without pandas and pyarrow."""
    try:
        import pandas
        import pyarrow  # noqa: F401 what pandas writes with
    except ModuleNotFoundError as error:
        raise UserError(f"parquet needs {error.name}: pip install 'kvdelta[parquet]'") from error
    flat = [
        {name: json.dumps(value) if isinstance(value, dict | list | tuple) else value for name, value in row.items()}
        for row in rows
    ]
    content = io.BytesIO()
    pandas.DataFrame(flat).to_parquet(content, index=False)
    return content.getvalue()


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
    from kvdelta.analysis.reading.rows import plain

    if format in FOR_PROGRAMS:
        print_rows(plain(rows), format)
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
