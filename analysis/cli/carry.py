"""`kvdelta carry`: does the order of schemes carry from cell to cell? From records alone. Light: imports what it needs in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvdelta.analysis.cli.flags import FiguresOut, Format, Style, check_style
from kvdelta.analysis.cli.starting import note, say
from kvdelta.schemes.errors import UserError

carrying = typer.Typer()

ByLoss = Annotated[Literal["nll", "kl"], typer.Option("--by", help="what a loss is: ΔNLL, or KL from exact")]
Budgets = Annotated[
    list[float] | None,
    typer.Option("--budget", help="measured bits; repeatable; default: wherever another scheme becomes the safest"),
]


@carrying.command("carry")
def carry(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="run folders, of several protocols too, or the folder of a sweep"),
    ],
    by: ByLoss = "nll",
    budget: Budgets = None,
    common: Annotated[
        bool, typer.Option("--common", help="compare the schemes that every run has, and leave out the others")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the draws of windows behind the intervals")] = 0,
    out: FiguresOut = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Does the order of schemes hold in other models, texts and contexts? Rank agreement, the common front, regret."""
    check_style(style)
    show_carried(runs, by, budget or (), common, seed, out or runs[0] / "figures", style, format)
    return 0


def show_carried(
    runs: Sequence[Path],
    by: Literal["nll", "kl"],
    budgets: Sequence[float],
    common: bool,
    seed: int,
    out: Path,
    style: str | None,
    format: str,
) -> None:
    """Tables on stdout, figures in a folder. UserError where the runs do not compare."""
    from kvdelta.analysis.cli.output import show_rows
    from kvdelta.analysis.reading import carry_tables as tables
    from kvdelta.analysis.reading import depths
    from kvdelta.analysis.reading.carrying import Carried
    from kvdelta.analysis.reading.cells import gather_cells, names_by_axes
    from kvdelta.analysis.reading.grids import grid_of

    for budget in budgets:
        if not budget > 0:
            raise UserError(f"--budget {budget:g}: give measured bits a number, above 0, such as --budget 4")
    cells, failed = gather_cells(runs, note)
    grid = grid_of(cells, by, common, failed)
    carried = Carried(grid, seed)
    regrets = carried.regret(budgets)
    by_depth = depths.depth_rows(grid)
    rows = [*carried.order, *carried.agreement, *regrets, *carried.fails, *(row for line in by_depth for row in line)]
    shown = {
        "Loss and place in each cell, least worst loss first": tables.order_table(grid, carried.order),
        "Do cells agree on the order? Those that agree least first": tables.agreement_table(grid, carried.agreement),
        "The safest scheme of a budget": tables.regret_table(grid, regrets, bool(budgets)),
        **depths.depth_tables(by_depth),
    }
    show_rows(cells[0].run, rows, shown, format, tables.legend(grid), tables.heading(grid))
    if format in ("table", "md") and (lines := tables.notes(grid, carried, budgets, regrets)):
        say("", *lines, format=format)
    from kvdelta.analysis.plots import figures

    where = names_by_axes([cell.run for cell in cells], alike=True)[0]
    for path in figures.draw_carried(carried.order, by_depth, "ΔNLL" if by == "nll" else "KL", where, out, style):
        note(f"figure: {path}")
