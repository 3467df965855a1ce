"""Tables and sentences of what carries from cell to cell."""

import math
from collections.abc import Sequence
from itertools import groupby

from kvdelta.analysis.reading.carry_rows import AgreementRow, FailRow, OrderRow, RegretRow
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import names_by_axes
from kvdelta.analysis.reading.draws import DRAWS
from kvdelta.analysis.reading.grids import Grid
from kvdelta.analysis.reading.run_tables import TWO_PASS
from kvdelta.analysis.reading.tables import Table, interval, number, signed

WIDE = 60  # characters of cells' names that still make a table which a terminal shows
SHOWN = 12  # pairs of cells, lines
ROOM = 36  # characters of names in a cell of a table


def heading(grid: Grid) -> list[str]:
    """The cells, each with what it is of."""
    floor = f"; noise floor at most {number(grid.floor, 2)}" if grid.floor else ""
    lines = [f"{len(grid.cells)} cells, {len(grid.names)} schemes; loss: {LOSSES[grid.by]}{floor}"]
    if common := names_by_axes([cell.run for cell in grid.cells], alike=True)[0]:
        lines.append(f"in all: {common}")
    shorts = short_names(grid)
    lines += [f"{short}: {cell.name}" for short, cell in zip(shorts, grid.cells, strict=True) if short != cell.name]
    lines += [f"no record of {name}: {why}" for name, why in grid.failed.items()]
    if bare := [short for short, cell in zip(shorts, grid.cells, strict=True) if not cell.has_intervals]:
        where = "in every cell" if len(bare) == len(grid.cells) else f"in {', '.join(bare)}"
        lines.append(
            f"one window, or windows that score tokens twice, {where}: what these have a part in has no interval"
        )
    return lines


LOSSES = {
    "nll": "ΔNLL, nats a token more than the cell's own exact",
    "kl": "KL from the cell's own exact, nats a token",
}


def short_names(grid: Grid) -> list[str]:
    """What the cells are called in tables: by name where there is room, else by letter."""
    names = [cell.name for cell in grid.cells]
    if sum(map(len, names)) <= WIDE:
        return names
    return [_letter(i) for i in range(len(names))]


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def order_table(grid: Grid, rows: Sequence[OrderRow]) -> Table:
    """A row a scheme, least worst loss first: its loss and place in every cell, and who beats it."""
    short = dict(zip((cell.name for cell in grid.cells), short_names(grid), strict=True))
    lines = [list(line) for _, line in groupby(rows, key=lambda row: row.name)]
    lines.sort(key=lambda line: max(math.inf if row.refused else row.loss for row in line))
    header = ["scheme", "bits", *short.values(), "beaten by"]
    return header, [[line[0].scheme, _bits(line), *map(_loss, line), _beaten(line, short)] for line in lines]


def _bits(line: Sequence[OrderRow]) -> str:
    found = sorted({f"{row.bits:.2f}" for row in line if row.bits is not None}, key=float)
    return "–" if not found else found[0] if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _loss(row: OrderRow) -> str:
    return "–" if row.rank is None else f"{signed(row.loss, 4)} {f'({row.rank})':>4}"


def _beaten(line: Sequence[OrderRow], short: dict[str, str]) -> str:
    if line[0].front:
        return FRONT
    left = {short[row.cell]: row.beaten_by for row in line if row.beaten_by}
    said: list[str] = []
    while left:  # who beats it in most of the cells that are left
        by = max(dict.fromkeys(name for names in left.values() for name in names), key=lambda name: _times(left, name))
        places = [place for place, names in left.items() if by in names]
        said.append(f"{by} in {'all' if len(places) == len(line) else _some(places)}")
        left = {place: names for place, names in left.items() if by not in names}
    return "; ".join(said[:2]) + ("; …" if len(said) > 2 else "") or "–"


def _times(beaten: dict[str, tuple[str, ...]], name: str) -> int:
    return sum(name in names for names in beaten.values())


FRONT = "nobody"


def agreement_table(grid: Grid, rows: Sequence[AgreementRow]) -> Table:
    """Each two cells, those that agree least first."""
    short = dict(zip((cell.name for cell in grid.cells), short_names(grid), strict=True))
    body = [
        [f"{short[row.cell]} · {short[row.other]}", _with_interval(row.tau, row.tau_low, row.tau_high, 2), str(row.told), str(row.reversed), "paired" if row.paired else "independent"]
        for row in rows[:SHOWN]
    ]  # fmt: skip
    return ["cells", "τ [95 %]", "told apart", "reversed", "windows"], body


def regret_table(grid: Grid, rows: Sequence[RegretRow], given: bool) -> Table:
    """given: budgets were asked for, else they are those from which on another scheme is chosen."""
    short = dict(zip((cell.name for cell in grid.cells), short_names(grid), strict=True))
    header = [
        "budget" if given else "from bits",
        "scheme",
        "bits",
        "worst loss [95 %]",
        "in",
        "worst regret [95 %]",
        "in ",
        "no difference from",
    ]
    body = [
        [
            f"{row.budget:.2f}", row.scheme, f"{row.bits:.2f}",
            interval(row.loss, row.loss_low, row.loss_high), short[row.loss_cell],
            _with_interval(row.regret, row.regret_low, row.regret_high, 4),
            short[row.regret_cell] if row.regret >= 5e-5 else "–", _some(row.no_difference) or "–",
        ]
        for row in rows
    ]  # fmt: skip
    return header, body


def _with_interval(figure: float, low: float, high: float, digits: int) -> str:
    if math.isnan(figure):
        return "–"
    return f"{figure:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _some(names: Sequence[str]) -> str:
    """As many as there is room for, one at least."""
    shown = list(names[:1])
    while len(shown) < len(names) and len(", ".join([*shown, names[len(shown)]])) <= ROOM:
        shown.append(names[len(shown)])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def notes(grid: Grid, carried: Carried, budgets: Sequence[float], regrets: Sequence[RegretRow]) -> list[str]:
    """What the tables do not say: who fails where, which budget nobody keeps, whose bits are unknown."""
    pairs = len(carried.agreement) - SHOWN
    lines = [f"and {pairs} more pairs of cells that agree as well or better: --format json"] if pairs > 0 else []
    lines += [_failing(row) for row in carried.fails[:SHOWN]]
    if (more := len(carried.fails) - SHOWN) > 0:
        lines.append(f"and {more} more that fail or are overtaken somewhere: --format json")
    kept = {row.budget for row in regrets}
    lines += [
        f"no scheme with figures in every cell keeps {budget:g} bits in all of them"
        for budget in budgets
        if budget not in kept
    ]
    unknown = [label for s, label in enumerate(grid.labels) if s in carried.whole and math.isnan(grid.bits[:, s].max())]
    if unknown:
        lines.append(f"bits not measurable, so within no budget and on no front: {', '.join(unknown)}")
    return lines


def _failing(row: FailRow) -> str:
    return f"{row.scheme} {'is overtaken' if row.beaten_by else 'fails'} in {row.cell}: {row.why}"


def legend(grid: Grid) -> str:
    two_pass = all(cell.run.settings.protocol == "two-pass" for cell in grid.cells)
    return f"{LEGEND}\n{TWO_PASS}" if two_pass else LEGEND


LEGEND = f"""In a cell: loss and place among the schemes. beaten by: a scheme of no more measured bits that loses less there, beyond the 95 %
interval of the pair over windows; {FRONT}: on the front in every cell. τ: Kendall's tau-b between the orders of two cells; told apart:
pairs of schemes whose order both cells tell beyond the interval, reversed: those ordered the other way round. Budgets: measured bits
in every cell; the scheme whose worst loss over cells is least; regret: its loss less the least within the budget in the same cell.
Intervals of a worst: t over windows, for all that it is the worst of; τ, and no difference: {DRAWS} draws of the windows, joint where cells
have the same ones."""
