"""`kvdelta check-cache`: does a cache do what transformers asks of one? Light: imports what it needs in it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from kvdelta.analysis.cli.ending import ROW_FAILED
from kvdelta.analysis.cli.flags import Listed
from kvdelta.analysis.cli.starting import note, say
from kvdelta.analysis.reading.escaping import markdown, printable

checking = typer.Typer()


@dataclass(frozen=True)
class Row:
    """How one check of one cache ended."""

    cache: str
    check: str
    owed: str
    outcome: str
    why: str


@checking.command("check-cache")
def check_cache(
    cache: Annotated[
        list[str],
        typer.Argument(
            metavar="CACHE…",
            help="module:factory or 'module:factory(window=64)', where factory(model.config, …) makes a cache; what --scheme takes "
            "elsewhere, such as kivi4 or hf-hqq:bits=4; DynamicCache or StaticCache",
        ),
    ],
    format: Listed = "table",
) -> int:
    """Does a cache do what transformers asks of one? Length, masks, crop, beams, drafts and more, on tiny random models."""
    from kvdelta.harness.subject.imports import import_quickly

    import_quickly()
    from kvdelta.harness.conformance import checks
    from kvdelta.harness.conformance.named import cache_named

    factories = {name: cache_named(name) for name in dict.fromkeys(cache)}
    rows: list[Row] = []
    for name, factory in factories.items():
        started, ended = time.monotonic(), [(check, check(factory)) for check in checks]
        mine = [Row(name, check.name, check.owed, outcome.ending, outcome.why) for check, outcome in ended]
        note(f"{name}: {_counted(mine)}, in {time.monotonic() - started:.0f} s")
        rows += mine
    _show(rows, list(factories), format)
    return ROW_FAILED if any(row.outcome == "fail" for row in rows) else 0


def _counted(rows: Sequence[Row]) -> str:
    """How many ended in each way, as "20 pass, 1 fail"."""
    outcomes = [row.outcome for row in rows]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(sorted(outcomes)))


def _show(rows: Sequence[Row], caches: Sequence[str], format: str) -> None:
    """Every row for programs; for people one table, with a column for each cache where there are several."""
    from kvdelta.analysis.cli.output import show_table
    from kvdelta.analysis.reading import tables

    if format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False))
    elif format == "csv":
        values = [asdict(row) for row in rows]
        print(tables.csv_text(list(values[0]), [list(value.values()) for value in values]), end="")
    elif len(caches) == 1 and format == "table":
        lines = [("check", "outcome", "why"), *((row.check, row.outcome, row.why) for row in rows)]
        say(*(f"{check:32}{outcome:16}{why}".rstrip() for check, outcome, why in lines))
    elif len(caches) == 1:
        show_table("", (["check", "outcome", "why"], [[row.check, row.outcome, row.why] for row in rows]), format)
    else:
        by_check: dict[str, list[str]] = {}
        for row in rows:
            by_check.setdefault(row.check, []).append(row.outcome)
        show_table("", (["check", *caches], [[check, *outcomes] for check, outcomes in by_check.items()]), format)
        reasons = _reasons(rows)
        print("", *(f"- {markdown(line)}" if format == "md" else printable(line) for line in reasons), sep="\n")


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why not, once for all caches that it holds for."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.outcome != "pass":
            together.setdefault((row.check, row.outcome, row.why), []).append(row.cache)
    return [f"{check} ({', '.join(caches)}): {outcome}: {why}" for (check, outcome, why), caches in together.items()]
