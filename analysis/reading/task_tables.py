"""The tables of tasks, and what stands above and below them."""

import math
from collections.abc import Callable, Sequence

from kvdelta.analysis.reading.tables import Table, chance, interval, number, table
from kvdelta.analysis.reading.tasks import TaskRow, cell_rows, depths_of, saturated
from kvdelta.harness.records.run import named
from kvdelta.harness.records.tasks import Cell, TaskRecord


def heading(record: TaskRecord) -> list[str]:
    settings = record.settings
    how = f"{named(settings)}, {settings.dtype} on {settings.device}"
    scored = counted(len(record.samples), "sample")
    return [
        record.model_name,
        f"{record.text_name}: {scored}, {how}; the context is cached, question and answer come after it",
    ]


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def titled_tables(record: TaskRecord, by_depth: bool = False) -> dict[str, Table]:
    """A table a task and length, each with its title; by depth: of those whose answer lies in one place."""
    found: dict[str, Table] = {}
    for cell in record.cells:
        if cell.cannot:
            continue
        rows = cell_rows(record, cell)
        if not by_depth:
            found[title(cell, rows)] = cell_table(rows)
        elif depths := depths_of(record, cell):
            found[title(cell, rows)] = depth_table(record, cell, depths)
    return found


def title(cell: Cell, rows: Sequence[TaskRow]) -> str:
    exact = rows[0]
    size = f"{cell.length} tokens" if cell.length else f"about {exact.context:.0f} tokens"
    guess = "" if exact.chance is None else f"; chance {_share(exact.chance)}"
    level = f" ({cell.said})" if cell.said and cell.length else ""
    return f"{cell.task}, {size}{level}: exact matches {exact.match} of {exact.samples}, NLL {exact.nll:.3f}{guess}"


def cell_table(rows: Sequence[TaskRow]) -> Table:
    columns: dict[str, Callable[[TaskRow], str]] = {
        "scheme": lambda row: row.scheme,
        "bits": lambda row: "–" if row.bits is None else f"{row.bits:.2f}",
        "ΔNLL [95 %]": lambda row: row.refused or (_delta(row) if row is not rows[0] else "baseline"),
        "p (Holm)": _shown(lambda row: "–" if row is rows[0] else _p(row.p_holm)),
        "KL": _shown(lambda row: number(row.kl, 2)),
        "match": _shown(lambda row: f"{row.match}/{row.samples}"),
        "lost": _shown(lambda row: "–" if row is rows[0] else str(row.lost)),
        "gained": _shown(lambda row: "–" if row is rows[0] else str(row.gained)),
        "p (McNemar)": _shown(lambda row: "–" if row is rows[0] else _p(row.p_match_holm)),
    }
    if any(row.found is not None for row in rows):
        columns["answers"] = _shown(lambda row: "–" if row.found is None else f"{100 * row.found:.0f} %")
    columns["read"] = _shown(lambda row: f"{row.read:.3f}")
    return table(rows, columns)


def depth_table(record: TaskRecord, cell: Cell, depths: Sequence[float]) -> Table:
    """ΔNLL and matches of each scheme by depth; of exact its NLL."""
    by_depth = [cell_rows(record, cell, depth) for depth in depths]
    header = ["scheme", *(f"depth {100 * depth:.0f} %" for depth in depths)]

    def shown(row: TaskRow, exact: bool) -> str:
        figure = f"NLL {row.nll:.3f}" if exact else f"{row.delta_nll:+.4f}"
        return row.refused or f"{figure}  {row.match}/{row.samples}"

    return header, [
        [contender.label, *(shown(rows[i], i == 0) for rows in by_depth)]
        for i, contender in enumerate(record.contenders)
    ]


def notes(record: TaskRecord) -> list[str]:
    """What the model cannot do, what failed, which intervals hold less than they say, and where matches say little."""
    lines = [f"{cell.task}, {cell.length} tokens: {cell.verdict}" for cell in record.cells if cell.cannot]
    lines += [f"{one.label}: failed: {one.error}" for one in record.contenders if one.error]
    full, skewed, shared = [], [], []
    for cell in record.cells:
        rows = cell_rows(record, cell)
        place = f"{cell.task}, {cell.length} tokens" if cell.length else cell.task
        full += [place] if saturated(rows) else []
        if rows and rows[0].contexts < rows[0].samples:
            shared.append(f"{place}: {counted(rows[0].samples, 'sample')} of {counted(rows[0].contexts, 'context')}")
        skewed += [f"{place} ({names})"] if (names := ", ".join(row.scheme for row in rows if row.skewed)) else []
    lines += [f"{one}: {SHARED}" for one in shared]
    if skewed:
        lines.append(f"differences are skewed, and intervals hold less than 95 %: {'; '.join(skewed)}")
    if full:
        lines.append(f"{SATURATION}: {'; '.join(full)}")
    return lines


def _delta(row: TaskRow) -> str:
    return interval(row.delta_nll, row.delta_nll_low, row.delta_nll_high)


def _p(value: float) -> str:
    return "–" if math.isnan(value) else chance(value)


def _shown(cell: Callable[[TaskRow], str]) -> Callable[[TaskRow], str]:
    return lambda row: "–" if row.refused else cell(row)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 else f"{value:.0e}"


SATURATION = "where exact matches nearly always, a match says little, and NLL alone tells schemes apart"

SHARED = "intervals are over contexts, each the mean of its samples; McNemar's p holds for independent samples only"

LEGEND = """ΔNLL: nats a token of the answer more than exact, on the same samples; 95 % interval over contexts, mostly one a sample. match: the answer
is verbatim what greedy decoding gives that keeps all exact that comes after the context (stepwise stores that too); generating over the
scheme's cache stores what it writes, and may give another. lost, gained: against exact, McNemar's exact test, like p adjusted for the schemes
of a table (Holm). answers: share of single answers found, each with the earlier ones given. bits: a number, at the context's length; exact
tokens at 16. read: share of the pairs of a query and a token of the context that came from packed storage. chance: of a match by guessing
among what the context has."""
