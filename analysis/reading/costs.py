"""A bench as rows: medians, ratios to the exact cache round by round, and what equal work differs by."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.tables import Table, number, table
from kvdelta.harness.records.bench import AGAIN, BASELINE, CONTROLS, PREFILL, STEPWISE, TWO_PASS, Bench


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} [{number(self.least)}, {number(self.most)}]"


@dataclass(frozen=True)
class CostRow(Row):
    """fill_ms, suffix_ms: medians of a window. times_exact: fill and suffix against exact's suffix, and fill_share: fill against
    prefill; medians of rounds. A foreign cache's fill is a prefill of its own."""

    name: str
    context: int
    fill_ms: float
    suffix_ms: float
    times_exact: float
    times_exact_least: float
    times_exact_most: float
    fill_share: float


def cost_rows(bench: Bench) -> list[CostRow]:
    rows = []
    for context in bench.contexts:
        prefills = bench.of(PREFILL, PREFILL, context)
        exact = _mean_of_both(bench, "suffix", context)
        for name in bench.names:
            fill, suffix = bench.of(name, "fill", context), bench.of(name, "suffix", context)
            if not suffix:
                continue
            ratio = Spread.of([(f + s) / e for f, s, e in zip(fill, suffix, exact, strict=True)])
            share = median(f / p for f, p in zip(fill, prefills, strict=True))
            rows.append(
                CostRow(
                    name,
                    context,
                    1e3 * median(fill),
                    1e3 * median(suffix),
                    ratio.median,
                    ratio.least,
                    ratio.most,
                    share,
                )
            )
    return rows


@dataclass(frozen=True)
class StepRow(Row):
    """step_ms: median. times_exact: against exact's in the same round. slowest: the slowest step against the median. resident,
    transient: bytes that the cache holds, and that a step needs on top."""

    name: str
    context: int
    step_ms: float
    times_exact: float
    times_exact_least: float
    times_exact_most: float
    slowest: float
    resident: float
    transient: float


def step_rows(bench: Bench) -> list[StepRow]:
    """times_exact is of medians of eight consecutive steps, and their least and most: a single step is noise."""
    rows = []
    held = {(one.name, one.context): one for one in bench.held}
    for context in bench.contexts:
        exact = _mean_of_both(bench, "step", context)
        for name in bench.names:
            if not (steps := bench.of(name, "step", context)):
                continue
            ratio = Spread.of(
                [median(mine) / median(its) for mine, its in zip(_eights(steps), _eights(exact), strict=True)]
            )
            bytes_ = held.get((name, context))
            rows.append(
                StepRow(
                    name,
                    context,
                    1e3 * median(steps),
                    ratio.median,
                    ratio.least,
                    ratio.most,
                    max(steps) / median(steps),
                    _or_nan(bytes_ and bytes_.resident),
                    _or_nan(bytes_ and bytes_.transient),
                )
            )
    return rows


@dataclass(frozen=True)
class ShareRow(Row):
    """One figure of a comparison; ratios are of the same round."""

    figure: str
    median: float
    least: float
    most: float


def share_rows(bench: Bench) -> list[ShareRow]:
    (context,) = bench.contexts
    contenders = len(bench.contenders)
    alone = _mean_of_both(bench, "window", context)
    prefills, suffixes = (_mean_of_both(bench, part, context) for part in ("prefill", "suffix"))
    whole = bench.of(TWO_PASS, "window", context)
    r = [p / s for p, s in zip(prefills, suffixes, strict=True)]
    cost = [w / a for w, a in zip(whole, alone, strict=True)]
    figures = {
        "a window of the exact cache alone, s": alone,
        f"a window of {contenders} rows, s": whole,
        f"a window of {contenders} rows, in windows of the exact cache": cost,
        "  ideal: (r + rows)/(r + 1), r = prefill/suffix": [(x + contenders) / (x + 1) for x in r],
        "  against the ideal": [c * (x + 1) / (x + contenders) for c, x in zip(cost, r, strict=True)],
        "controls of the first windows, in windows of the exact cache": [
            c / a for c, a in zip(bench.of(CONTROLS, "controls", context), alone, strict=True)
        ],
        "scoring a row, in suffix passes": [
            x / contenders / s for x, s in zip(bench.of(TWO_PASS, "scoring", context), suffixes, strict=True)
        ],
    }
    for name in bench.names:
        if name.startswith(STEPWISE):
            steps = bench.of(name, "window", context)
            figures[f"a window {name}, in windows by two passes"] = [s / w for s, w in zip(steps, whole, strict=True)]
    figures["equal work: exact again, in windows of exact"] = [
        b / a for a, b in zip(bench.of(BASELINE, "window", context), bench.of(AGAIN, "window", context), strict=True)
    ]
    return [ShareRow(name, s.median, s.least, s.most) for name, values in figures.items() for s in [Spread.of(values)]]


def shown(bench: Bench) -> tuple[Sequence[Row], Table]:
    """The rows of a bench of any kind, and their table."""
    if bench.kind == "compare":
        shares = share_rows(bench)
        return shares, share_table(shares)
    if bench.kind == "decode":
        steps = step_rows(bench)
        return steps, step_table(steps)
    costs = cost_rows(bench)
    return costs, cost_table(costs)


def heading(bench: Bench) -> list[str]:
    each = ("step" if bench.kind == "decode" else "round") + "s" * (bench.rounds > 1)
    together = f"{bench.batch} window{'s' * (bench.batch > 1)} at once, " if bench.kind != "decode" else ""
    threads = f", {bench.threads} thread{'s' * (bench.threads > 1)}" if bench.device == "cpu" else ""
    return [
        bench.model_name,
        f"{together}{bench.rounds} {each} in turn after a warm-up, {bench.dtype} on {bench.device}{threads}",
    ]


def cost_table(rows: Sequence[CostRow]) -> Table:
    return table(
        rows,
        {
            "cache": lambda row: row.name,
            "tokens": lambda row: str(row.context),
            "fill, ms": lambda row: number(row.fill_ms),
            "suffix, ms": lambda row: number(row.suffix_ms),
            "both / exact suffix": lambda row: str(
                Spread(row.times_exact, row.times_exact_least, row.times_exact_most)
            ),
            "fill / prefill": lambda row: f"{100 * row.fill_share:.1f} %",
        },
    )


def step_table(rows: Sequence[StepRow]) -> Table:
    exact = {row.context: row.resident for row in rows if row.name == BASELINE}
    return table(
        rows,
        {
            "cache": lambda row: row.name,
            "tokens": lambda row: str(row.context),
            "step, ms": lambda row: number(row.step_ms),
            "/ exact": lambda row: str(Spread(row.times_exact, row.times_exact_least, row.times_exact_most)),
            "slowest / median": lambda row: number(row.slowest),
            "resident, MB": lambda row: number(row.resident / 1e6),
            "× smaller": lambda row: number(exact.get(row.context, float("nan")) / row.resident),
            "transient, MB": lambda row: number(row.transient / 1e6),
        },
    )


def share_table(rows: Sequence[ShareRow]) -> Table:
    return table(
        rows,
        {
            "figure": lambda row: row.figure,
            "median [least, most]": lambda row: str(Spread(row.median, row.least, row.most)),
        },
    )


def _mean_of_both(bench: Bench, part: str, context: int) -> list[float]:
    """By round, of the exact cache at its beginning and its end."""
    first, last = bench.of(BASELINE, part, context), bench.of(AGAIN, part, context)
    return [(a + b) / 2 for a, b in zip(first, last, strict=True)]


def _eights(values: Sequence[float]) -> list[Sequence[float]]:
    whole = [values[i : i + 8] for i in range(0, len(values) - 7, 8)]
    return whole or [values]


def _or_nan(value: int | None) -> float:
    return float("nan") if value is None else float(value)
