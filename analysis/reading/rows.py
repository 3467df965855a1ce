"""Rows of tables: each kind is a frozen dataclass in the file that makes it; here is what all of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of a table: named figures, and what they are of."""

    def plain(self) -> dict[str, Any]:
        """Every figure by its name, for JSON and CSV. A field that is None by default is left out where it is None: this
        row has no such figure. JSON has no NaN: what could not be told (an interval of one window) is None."""
        named = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: plain_value(value)
            for name, (value, default) in named.items()
            if value is not None or default is not None
        }


def plain_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.plain() for row in rows]
