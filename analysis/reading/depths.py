"""KL against depth: the same scored tokens under prefixes of several lengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvdelta.analysis.reading.cells import PREFIX, Cell, names_by_axes
from kvdelta.analysis.reading.draws import quantile
from kvdelta.analysis.reading.grids import Grid
from kvdelta.analysis.reading.protocols import ratio_of_means
from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.tables import Table


@dataclass(frozen=True)
class DepthRow(Row):
    """One scheme under one prefix. group: what else the cells are of; kl: nats a token, with its 95 % t interval over windows. times: the
    KL over that under the shortest prefix, with a 95 % interval paired by window; None of the shortest, and where its KL is within
    the noise floor."""

    table: str = field(default="depth", kw_only=True)
    group: str
    scheme: str
    name: str
    prefix: int
    kl: float
    kl_low: float
    kl_high: float
    times: float | None = None
    times_low: float | None = None
    times_high: float | None = None


def depth_rows(grid: Grid) -> list[list[DepthRow]]:
    """By group of cells that score the same tokens under several prefixes, and scheme, the shortest prefix first; none where
    there is no such group. Schemes that have no figures under some prefix are left out."""
    groups: dict[tuple, list[tuple[str, Cell]]] = {}
    labels = names_by_axes([cell.run for cell in grid.cells], without=[PREFIX])
    for cell, label in zip(grid.cells, labels, strict=True):
        settings = cell.run.settings
        key = (repr(settings.model), cell.scored, settings.protocol, settings.step, settings.dtype, settings.device)
        groups.setdefault(key, []).append((label, cell))
    rows = []
    for found in groups.values():
        cells = sorted((cell for _, cell in found), key=_prefix)
        if len({_prefix(cell) for cell in cells}) < 2:
            continue
        for name, label in zip(grid.names, grid.labels, strict=True):
            if all(name in cell.rows and not cell.rows[name][1].refused for cell in cells):
                rows.append([_row(found[0][0], label, name, cell, cells[0]) for cell in cells])
    return rows


def _prefix(cell: Cell) -> int:
    return cell.run.settings.window_length - cell.run.settings.score_length


def _row(group: str, label: str, name: str, cell: Cell, first: Cell) -> DepthRow:
    i, row = cell.rows[name]
    half = quantile(cell) * row.kl_se if cell.has_intervals else math.nan
    times = (None, None, None)
    k, shallow = first.rows[name]
    if cell is not first and shallow.kl > first.floor("kl"):
        few, many = [w.kl[k] for w in first.windows], [w.kl[i] for w in cell.windows]
        times = ratio_of_means(first.run, few, many, sure=True)
    return DepthRow(group, label, name, _prefix(cell), row.kl, row.kl - half, row.kl + half, *times)


def depth_tables(rows: Sequence[Sequence[DepthRow]]) -> dict[str, Table]:
    """By title: KL of every scheme under every prefix, and the longest over the shortest."""
    tables: dict[str, Table] = {}
    for line in rows:
        group = f", {line[0].group}" if line[0].group else ""
        header = ["scheme", *(f"prefix {row.prefix}" for row in line), "last over first [95 %]"]
        tables.setdefault(f"KL by depth, the same scored tokens{group}", (header, []))[1].append(
            [line[0].scheme, *(f"{row.kl:.2g}" for row in line), _times(line[-1])]
        )
    return tables


def _times(row: DepthRow) -> str:
    if row.times is None or row.times_low is None or row.times_high is None:
        return "–"
    return f"{row.times:.2f}" + ("" if math.isnan(row.times_low) else f" [{row.times_low:.2f}, {row.times_high:.2f}]")
