"""A recommendation on stdout: when a race has ended, and again from its record. Light: no torch."""

import json
from typing import TYPE_CHECKING, Any

from kvdelta.analysis.cli.output import FOR_PROGRAMS, print_rows, show_table
from kvdelta.analysis.cli.starting import say

if TYPE_CHECKING:
    from kvdelta.harness.records.recommendation import Recommendation


def show_recommendation(one: "Recommendation", format: str) -> None:
    """csv: the rows of the verification."""
    from kvdelta.analysis.reading import recommending
    from kvdelta.analysis.reading.rows import plain

    verified = [recommending.VerifiedRow(**_row(row)) for row in one.verified]
    if format == "json":
        print(one.as_json())
        return
    if format in FOR_PROGRAMS:
        print_rows(plain(verified), format)
        return
    measure = "KL" if one.by == "kl" else "ΔNLL"
    race = [recommending.RaceRow(**_row(row)) for row in one.race]
    say(*(one.heading or [*one.models, f"a race within {one.budget:g} bits"]), format=format)
    show_table("The race", recommending.race_table(race, measure), format)
    show_table("Verified on fresh windows", recommending.verified_table(verified, measure), format)
    if format == "table":
        print(recommending.LEGEND)
    say("", *one.said, "", format=format)
    fence = ["```"] if format == "md" else []
    say(*fence, *_code(one.recommended), *fence)


def _row(said: dict[str, Any]) -> dict[str, Any]:
    """None stands for NaN where a figure is missing, but for what was not predicted."""
    return {
        name: float("nan")
        if value is None and name != "predicted"
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in said.items()
    }


def _code(spec: str) -> list[str]:
    return [
        "from kvdelta.harness import SchemeCache; from kvdelta.schemes import parse_scheme",
        f"cache = SchemeCache.for_model(parse_scheme({json.dumps(spec)}), model)  # then model.generate(…, cache=cache)",
    ]
