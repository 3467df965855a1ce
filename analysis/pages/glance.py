"""The top of the page: which scheme at which size, what it costs, how sure, and of what that is known."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvdelta.analysis.pages.keys import WEIGHTS, Keys, model_of
from kvdelta.analysis.pages.rows import cell_grid
from kvdelta.analysis.reading.carry_rows import RegretRow
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import Cell, names_by_axes
from kvdelta.analysis.reading.grids import Grid, grid_of
from kvdelta.analysis.reading.run_tables import FEW_WINDOWS
from kvdelta.analysis.reading.tables import interval, number, signed
from kvdelta.harness.records.run import named

BUDGETS = (9.0, 6.0, 5.0, 4.0, 3.0, 2.5)
LEADS = (5.0, 6.0, 4.0, 9.0, 3.0, 2.5)  # of which budget the sentence is: the first that there is
NAMED = 4
MANY = 10


@dataclass(frozen=True)
class Glance:
    """sentence: the answer; evidence: of what it is known; cautions: what it is not known of; cards: one a budget."""

    sentence: str
    evidence: str
    cautions: list[str]
    cards: list[dict[str, Any]]


def glance(cells: Sequence[Cell], failed: dict[str, str], keys: Keys) -> Glance | None:
    """None where there is no run with a scheme that could be scored."""
    chosen = main_cells(cells)
    grid = _grid(chosen, failed)
    regrets = [] if grid is None else _without_repeats(Carried(grid).regret(BUDGETS))
    if grid is None or not regrets:
        return None
    by_budget = {row.budget: row for row in regrets}
    lead = next(by_budget[budget] for budget in LEADS if budget in by_budget)
    cards = [_card(row, grid, keys) for row in regrets]
    left_out = len({name for cell in chosen for name in cell.rows}) - len(grid.names)
    return Glance(
        _sentence(lead, cards[regrets.index(lead)], grid),
        _evidence(chosen, len(grid.names)),
        _cautions(chosen, len(grid.names), left_out),
        cards,
    )


def main_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Those of the prefix that most rows are of, under names without what all of them have; all of them where two prefixes have equally
    many rows."""
    chosen = [cells[i] for i in main_places(cells)]
    names = names_by_axes([cell.run for cell in chosen])
    if len(set(names)) < len(names) or len(names) < 2:
        return chosen
    return [replace(cell, name=name) for cell, name in zip(chosen, names, strict=True)]


def main_places(cells: Sequence[Cell]) -> list[int]:
    rows: dict[int, int] = {}
    for cell in cells:
        rows[_prefix(cell)] = rows.get(_prefix(cell), 0) + len(cell.rows)
    most = [prefix for prefix, count in rows.items() if count == max(rows.values())]
    return [i for i, cell in enumerate(cells) if len(most) > 1 or _prefix(cell) == most[0]]


def _prefix(cell: Cell) -> int:
    return cell.run.settings.window_length - cell.run.settings.score_length


def _grid(cells: Sequence[Cell], failed: dict[str, str]) -> Grid | None:
    if len(cells) == 1:
        return cell_grid(cells[0]) if cells[0].rows else None
    shared = set.intersection(*({*cell.rows} for cell in cells)) if cells else set()
    return grid_of(cells, "kl", True, failed) if len(shared) > 1 else None


def _without_repeats(rows: Sequence[RegretRow]) -> list[RegretRow]:
    """Of the budgets at which the same scheme is chosen the smallest."""
    return [row for i, row in enumerate(rows) if i + 1 == len(rows) or rows[i + 1].scheme != row.scheme]


def _card(row: RegretRow, grid: Grid, keys: Keys) -> dict[str, Any]:
    """With the ΔNLL that is the largest over the cells."""
    name = grid.names[grid.labels.index(row.scheme)]
    rows = [(cell, cell.rows[name][1]) for cell in grid.cells if name in cell.rows]
    cell, worst = max(rows, key=lambda one: one[1].delta_nll)
    low, high = max(0.0, row.loss_low), row.loss_high
    kl = number(row.loss, 2) + ("" if math.isnan(low) else f" [{number(low, 2)}, {number(high, 2)}]")
    several = len(grid.cells) > 1
    return {
        "s": keys.scheme(worst.name, worst.scheme),
        "budget": f"within {row.budget:g} bits",
        "scheme": row.scheme,
        "bits": f"{row.bits:.2f} bits",
        "times": f"{16 / row.bits:.1f} × smaller",
        "kl": kl,
        "kl_where": row.loss_cell if several else "",
        "delta": minus(interval(worst.delta_nll, worst.delta_nll_low, worst.delta_nll_high)),
        "delta_where": cell.name if several else "",
        "ppl": minus(f"{signed(100 * math.expm1(worst.delta_nll), 2)} %"),
        "alike": list(row.no_difference[:NAMED]),
        "alike_more": max(0, len(row.no_difference) - NAMED),
        "candidates": row.candidates,
    }


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _sentence(row: RegretRow, card: dict[str, Any], grid: Grid) -> str:
    worst = f" in the worst of {len(grid.cells)} runs" if len(grid.cells) > 1 else ""
    least = "costs least of the" if row.candidates > 1 else "is the only one of the"
    among = f"{row.candidates} schemes that fit" if row.candidates > 1 else "schemes that fits"
    alike = ""
    if row.no_difference:
        some = ", ".join(row.no_difference[:2])
        more = f" and {len(row.no_difference) - 2} more" if len(row.no_difference) > 2 else ""
        alike = f" These windows do not tell it from {some}{more}."
    return (
        f"Within {row.budget:g} bits a number, {row.scheme} {least} {among}: at {row.bits:.2f} measured bits, {16 / row.bits:.1f} × smaller "
        f"than 16, KL {card['kl']} nats a token from exact{worst}, perplexity {card['ppl']} (ΔNLL {card['delta']}).{alike}"
    )


def _evidence(cells: Sequence[Cell], schemes: int) -> str:
    runs = [cell.run for cell in cells]

    def each(values: Sequence[str]) -> str:
        return " and ".join(dict.fromkeys(values))

    windows = sorted({len(run.windows) for run in runs})
    count = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
    prefixes = each([str(run.settings.window_length - run.settings.score_length) for run in runs])
    return (
        f"Known of {schemes} scheme{'s' * (schemes != 1)} on {each([model_of(run) for run in runs])}, by "
        f"{each([named(run.settings) for run in runs])}, over {count} window{'s' * (count != '1')} of {each([run.text_name for run in runs])} "
        f"({prefixes} tokens cached, {each([str(run.settings.score_length) for run in runs])} read them), each scheme paired "
        "with exact on the same windows; brackets: 95 % over windows."
    )


def _cautions(cells: Sequence[Cell], schemes: int, left_out: int) -> list[str]:
    runs = [cell.run for cell in cells]
    lines = []
    if len({model_of(run) for run in runs}) == 1:
        lines.append("One model: the order of schemes can be another on yours, as keys differ from family to family.")
    lines += dict.fromkeys(
        f"The weights of {model_of(run)} are {run.model_name.partition(WEIGHTS)[2]}."
        for run in runs
        if WEIGHTS in run.model_name
    )
    if len({run.settings.text_sha256 for run in runs}) == 1 and len(runs) == 1:
        lines.append("One text.")
    if all(run.settings.protocol == "two-pass" for run in runs):
        lines.append(
            "Two passes alone: the suffix's own tokens are exact, and attention looks mostly at near ones, so decoding costs more, and "
            "not every scheme alike (`--protocol two-pass --protocol stepwise --step 16` shows both)."
        )
    few = min(len(run.windows) for run in runs)
    if few < FEW_WINDOWS:
        lines.append(
            f"Only {few} window{'s' * (few != 1)}: too few to show that differences are normal, as intervals assume."
        )
    elif few < 16:
        lines.append(f"{few} windows: intervals are wide; `--windows 64` narrows them.")
    if schemes > MANY:
        lines.append(
            "The least of many on the same windows is flattered a little; `kvdelta recommend` verifies on fresh ones."
        )
    if left_out:
        lines.append(f"{left_out} schemes that some run lacks have no part in this; the table has them.")
    return lines
