"""The tables of the two published comparisons, from their records."""

from analysis import summary, tables
from harness.records import Run
from harness.reproduce import GRID, LADDER, PUBLISHED

Table = tuple[list[str], list[list[str]]]


def trap_table(single: Run, two: Run) -> Table:
    """Perplexity of every cache in one pass, to the last digit, and in two."""
    body = []
    in_one, in_two = summary.perplexities(single), summary.perplexities(two)
    for contender, one, other in zip(two.contenders, in_one, in_two, strict=True):
        change = "" if contender.lossless else f" ({tables.signed(100 * (other / in_two[0] - 1), 2)} %)"
        body.append([contender.label, repr(one), f"{other:.4f}{change}"])
    return ["cache", "perplexity, single pass", "perplexity, two passes"], body


def kivi_tables(run: Run) -> dict[str, Table]:
    """By title: the published settings, the grid of axes and bits, and one change at a time from INT4 to KIVI."""
    rows = summary.summarize(run)

    def row(spec: str) -> summary.Row:
        return rows[summary.find(run, spec)]

    grid = {axes: {bits: row(spec) for bits, spec in line.items()} for axes, line in GRID.items()}
    ladder = [{**row(spec), "scheme": step} for spec, step in LADDER.items()]
    return {
        "Published settings": tables.cells([row("exact"), *map(row, PUBLISHED)]),
        "Asymmetric, groups of 32: ΔNLL ± SE": tables.cost_matrix(grid),
        "One change at a time": tables.cells([row("exact"), *ladder]),
    }
