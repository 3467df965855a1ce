"""Every table of README.md and docs/ says what the records say, to the digits that it prints.

A table is known by its header, wherever it stands. One with digits in it that is neither registered nor listed below with a reason
fails: register what its cells are made of.
"""

from functools import cache

import pytest

from kvdelta.harness.conformance import checks
from kvdelta.harness.conformance.named import cache_named
from tests.docs.markdown import MarkdownTable, label_of, tables
from tests.docs.printed import differences, numbers_in
from tests.docs.registered_tables import REGISTERED, registered

NO_FIGURES = "says what something is; its digits are names and settings"

NOT_FROM_RECORDS = {
    ("protocol", "", ""): NO_FIGURES + ", and a timing with its command",
    ("column", "what it is"): NO_FIGURES,
    ("trap", "what happens", "see it"): NO_FIGURES + "; what was measured is claimed by its words in tests/docs/claims",
    (
        "tried",
        "how often",
        "went wrong, and is mended",
        "command",
    ): "counts of tests, each with the command that runs it",
    (
        "",
        "mutants",
        "killed before",
        "killed after",
    ): "of mutants that no record names; the text has the commit, seed and commands",
    ("survivor", "verdict"): NO_FIGURES,
    ("engine", "what it can say, November 2026", "the file"): "what other projects say; its digits are their issues",
    ("file", "what is in it"): NO_FIGURES,
}
OUTCOMES = "check"  # first column of the table that check-cache prints
CACHES = {"DynamicCache": "DynamicCache", "SchemeCache (`kivi4`)": "kivi4"}
"""Columns that are made again here; the others take as long each."""


@cache
def outcomes(spec: str) -> dict[str, str]:
    """By check."""
    factory = cache_named(spec)
    return {check.name: check(factory).ending for check in checks}


def cells_of(table: MarkdownTable) -> list[tuple[str, ...]]:
    return [row for row in table.rows if any(row)]


def test_there_are_tables():
    found = [table for table in tables() if registered(table.header)]
    assert {table.header for table in found} == {one.header for one in REGISTERED}


@pytest.mark.parametrize("table", [table for table in tables() if table.has_figures], ids=lambda table: table.place)
def test_a_table_with_figures_is_known(table):
    assert registered(table.header) or table.header in NOT_FROM_RECORDS or table.header[0] == OUTCOMES, (
        f"{table.place}: register what its cells are made of in tests/docs/registered_tables.py: {table.header}"
    )


@pytest.mark.parametrize("header", NOT_FROM_RECORDS, ids=" · ".join)
def test_what_is_excepted_is_there(header):
    assert header in {table.header for table in tables()}


@pytest.mark.parametrize(
    "table", [table for table in tables() if registered(table.header)], ids=lambda table: table.place
)
def test_cells_are_those_of_the_records(table):
    known = registered(table.header)
    assert known is not None
    wrong = []
    for first, *cells in cells_of(table):
        figures = known.figures(label_of(first))
        assert len(figures) == len(cells), first
        for column, cell, values in zip(table.header[1:], cells, figures, strict=True):
            wrong += [f"{first}, {column}: {one}" for one in differences(numbers_in(cell), values)]
        if known.bold and known.bold(label_of(first)) != first.startswith("**"):
            wrong.append(f"{first}: {'is' if known.bold(label_of(first)) else 'is not'} on the front")
    assert wrong == [], known.record


@pytest.mark.parametrize("column", CACHES)
@pytest.mark.parametrize(
    "table", [table for table in tables() if table.header[0] == OUTCOMES], ids=lambda table: table.place
)
def test_outcomes_of_a_cache(table, column):
    at = table.header.index(column)
    assert {row[0]: row[at].strip("*") for row in table.rows} == outcomes(CACHES[column])
