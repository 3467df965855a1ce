"""KIVI against naive INT4: which schemes, and the tables of their record."""

from dataclasses import replace

from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading import run_tables, summary
from kvdelta.analysis.reading.joined import Joined
from kvdelta.analysis.reading.tables import Table
from kvdelta.harness.records.run import Run


def grid_spec(bits: int, key_axis: str, value_axis: str) -> str:
    return f"asymmetric:bits={bits},key_axis={key_axis},value_axis={value_axis},group_size=32"


# K axis × V axis × bits, all else equal
GRID = {
    f"K {key}, V {value}": {f"{bits} bit": grid_spec(bits, key, value) for bits in (8, 4, 3, 2)}
    for key in ("token", "channel")
    for value in ("token", "channel")
}

PUBLISHED = ("kivi4", "kivi2", "int4", "hqq4")

LADDER = {
    "int4": "naive INT4: symmetric, groups of 64",
    "int4:group_size=16": "groups of 16",
    "asym4": "asymmetric, groups of 64",
    "asym4:group_size=32": "asymmetric, groups of 32",
    "asym4:group_size=32,key_axis=channel": "+ keys per channel",
    "kivi4": "+ residual of 128: KIVI",
}

EQUAL_BITS = ("int4:group_size=16", "asym4:group_size=32,key_axis=channel")  # both 5.00

ERROR_BITS = ("4 bit", "2 bit")

# Liu et al. 2024 (arXiv 2402.02750), table 2: Llama-2-13B, 2 bit
PUBLISHED_RATIOS = {
    "K error, per token / per channel": 3.0,
    "attention-score error, K per token / per channel": 4.9,
    "V error, per token / per channel": 1.23,
    "attention-output error, V per channel / per token": 14.1,
}


def error_specs() -> list[str]:
    """The schemes whose errors explain the table: naive INT4, and the grid of axes at 4 and 2 bits."""
    return ["int4", *(row[bits] for bits in ERROR_BITS for row in GRID.values())]


def ratios(joined: Joined) -> list[tuple[str, float, float]]:
    """(name, measured here, published) of the ratios in KIVI's table 2, at 2 bits."""
    _, record, arrays = joined.errors[0]
    values = measures.by_scheme(arrays)

    def of(measure: str, key_axis: str, value_axis: str) -> float:
        spec = GRID[f"K {key_axis}, V {value_axis}"]["2 bit"]
        return float(values[measure][record.labels.index(spec)])

    here = (
        of("key_error", "token", "token") / of("key_error", "channel", "token"),
        of("score_error", "token", "token") / of("score_error", "channel", "token"),
        of("value_error", "token", "token") / of("value_error", "token", "channel"),
        of("output_value", "token", "channel") / of("output_value", "token", "token"),
    )
    return [(name, mine, published) for (name, published), mine in zip(PUBLISHED_RATIOS.items(), here, strict=True)]


def kivi_specs() -> list[str]:
    return list(
        dict.fromkeys(["exact", *PUBLISHED, *LADDER, *(spec for row in GRID.values() for spec in row.values())])
    )


def kivi_tables(run: Run) -> dict[str, Table]:
    """By title: the published settings, the grid of axes and bits, and one change at a time from INT4 to KIVI."""
    rows = summary.summarize(run)

    def row(spec: str) -> summary.SummaryRow:
        return rows[summary.find(run, spec)]

    grid = {axes: {bits: row(spec) for bits, spec in line.items()} for axes, line in GRID.items()}
    ladder = [replace(row(spec), scheme=step) for spec, step in LADDER.items()]
    return {
        "Published settings": run_tables.cells([row("exact"), *map(row, PUBLISHED)]),
        "Asymmetric, groups of 32: ΔNLL ± SE": run_tables.cost_matrix(grid),
        "One change at a time": run_tables.cells([row("exact"), *ladder]),
    }
