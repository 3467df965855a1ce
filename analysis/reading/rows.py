"""Rows of tables: each kind is a frozen dataclass in the file that makes it; here is what all of them share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

NAMED = 5  # of what is left out


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


def left_out(refused: Mapping[str, str]) -> str:
    """Says what figures and rankings leave out; refused: name → why. Empty where nothing is."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused.items():
        by_reason.setdefault(reason, []).append(name)
    parts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts.append(f"left out ({reason}): {', '.join(names[:NAMED])}{more}")
    return "; ".join(parts)


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.plain() for row in rows]
