"""What a page is made of: sections with charts and tables, each with a text that says the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from kvdelta.analysis.reading.rows import plain_value
from kvdelta.analysis.reading.tables import Table

Datum = dict[str, Any]
"""A mark: s, its scheme, and c, its source, are numbers of analysis.pages.keys; facet: which of the small charts it is in."""


DIGITS = 6  # of the figures of charts, which show three; the rows of the table have all


@dataclass(frozen=True)
class Chart:
    """spec: Vega-Lite, with its marks under the name d. columns: (field, title, format) of what the pointer and the table of the chart
    say; summary: the chart in a sentence, for those who do not see it. most: schemes drawn at once, those first that are chosen or
    on the front. data None: the rows of the page's table. line: the field whose values have a
    line each, and its height in pixels; labels: names beside the marks of the front; key: names below."""

    spec: Mapping[str, Any]
    columns: Sequence[tuple[str, str, str]]
    summary: str
    data: Sequence[Datum] | None = None
    most: int | None = None
    line: tuple[str, int] | None = None
    labels: bool = False
    key: bool = False

    def as_json(self) -> dict[str, Any]:
        data = None if self.data is None else packed(self.data, DIGITS)
        return {
            "spec": self.spec,
            "columns": self.columns,
            "summary": self.summary,
            "data": data,
            "most": self.most,
            "line": self.line,
            "labels": self.labels,
            "key": self.key,
        }


@dataclass(frozen=True)
class Section:
    """text: paragraphs above; tables: titled, below the charts."""

    id: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, Table]] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        tables = [{"title": title, "header": header, "body": body} for title, (header, body) in self.tables]
        charts = [chart.as_json() for chart in self.charts]
        return {
            "id": self.id,
            "title": self.title,
            "text": list(self.text),
            "charts": charts,
            "tables": tables,
            "notes": list(self.notes),
        }


def packed(rows: Sequence[Datum], digits: int | None = None) -> dict[str, Any]:
    """Rows as their fields' names, once, and values; what has no value is null. digits: significant ones that are kept."""

    def value(one: Any) -> Any:
        return float(f"{one:.{digits}g}") if digits and isinstance(one, float) and isfinite(one) else plain_value(one)

    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"fields": names, "values": [[value(row.get(name)) for name in names] for row in rows]}
