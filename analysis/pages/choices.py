"""Sections on what was chosen and what it takes: maps of bits by layer, recommendations, and costs."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvdelta.analysis.pages import charts
from kvdelta.analysis.pages.found import Found
from kvdelta.analysis.pages.keys import Keys, model_of
from kvdelta.analysis.pages.parts import Chart, Datum, Section
from kvdelta.analysis.reading import allocation, costs, recommending, summary
from kvdelta.analysis.reading.tables import Table, number
from kvdelta.harness.records.bench import Bench
from kvdelta.harness.records.recommendation import Recommendation
from kvdelta.harness.records.run import Run

SIDES = {"key": "K", "value": "V"}


def maps_section(found: Found, keys: Keys) -> Section | None:
    made, text = (
        [],
        ["Bits of the codes of keys and values in each layer, as `kvdelta allocate` chose them under its budget."],
    )
    for folder, run, maps in found.allocations:
        for name, content in maps.items():
            if layers := content.get("layers"):
                made.append(_map_chart(run, name, layers, keys))
        if said := _verdict(run):
            text.append(f"{model_of(run)}, {folder.name}: {said}")
    made = [chart for chart in made if chart is not None]
    return Section("maps", "Bits by layer", text, made) if made else None


def _map_chart(run: Run, name: str, layers: Mapping[str, Mapping[str, str]], keys: Keys) -> Chart | None:
    data: list[Datum] = []
    for layer, sides in layers.items():
        for side, spec in sides.items() if isinstance(sides, Mapping) else dict.fromkeys(SIDES, sides).items():
            bits = re.search(r"bits=(\d+)", str(spec)) or re.match(r"[a-z]+(\d+)", str(spec))
            data.append({
                "c": keys.source(run), "facet": f"{name}, {model_of(run)}", "side": SIDES.get(side, side), "x": int(layer),
                "v": int(bits[1]) if bits else 16, "spec": str(spec),
            })  # fmt: skip
    if not data:
        return None
    mean = {side: sum(d["v"] for d in data if d["side"] == side) / sum(d["side"] == side for d in data) for side in dict.fromkeys(d["side"] for d in data)}  # fmt: skip
    said = " and ".join(f"{bits:.2f} for {side}" for side, bits in mean.items())
    spec = charts.map_chart([d["v"] for d in data], [d["x"] for d in data], "layer", "code bits")
    columns = [("side", "side", "text"), ("x", "layer", "whole"), ("v", "bits", "whole"), ("spec", "scheme", "text")]
    return Chart(
        spec, columns, f"Map of code bits by layer and side, on average {said}.", data, line=charts.TALL_SQUARE
    )


def _verdict(run: Run) -> str:
    """As `allocate` says it: the map against the best uniform pair of its bits."""
    if len(run.contenders) < 3:
        return ""
    rows = summary.summarize(run)
    best = allocation.best_of(rows[2:])
    if best is None:
        return ""
    against = summary.summarize(run, best.name)
    return allocation.verdict(against[1], best.scheme, sum(not row.refused for row in rows[2:]))


def recommended_section(found: Found) -> Section | None:
    if not found.recommendations:
        return None
    text, notes, shown = [], [], []
    for _, one in found.recommendations:
        of = f"{' and '.join(one.models)}, within {one.budget:g} bits"
        text.append(f"{' and '.join(one.models)}: {one.said[0]}" if one.said else f"{of}: {one.recommended}")
        notes += [f"{of}: {line}" if len(found.recommendations) > 1 else line for line in one.said[1:]]
        measure = "KL" if one.by == "kl" else "ΔNLL"
        shown += [(f"Verified on fresh windows: {of}", _verified(one, measure)), (f"Race: {of}", _race(one, measure))]
    return Section("recommended", "Recommended", text, tables=shown, notes=notes)


def _verified(one: Recommendation, measure: str) -> Table:
    return recommending.verified_table(_rows(recommending.VerifiedRow, one.verified), measure)


def _race(one: Recommendation, measure: str) -> Table:
    return recommending.race_table(_rows(recommending.RaceRow, one.race), measure)


def _rows(kind: Any, kept: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The rows again; null is no number, but of what was not predicted."""

    def value(name: str, one: Any) -> Any:
        return math.nan if one is None and name != "predicted" else tuple(one) if isinstance(one, list) else one

    return [kind(**{name: value(name, one) for name, one in row.items()}) for row in kept]


def costs_section(found: Found, keys: Keys) -> Section | None:
    made = [chart for folder, bench in found.benches for chart in _bars(bench, folder.name, keys)]
    if not made:
        return None
    text = [
        "Medians of rounds in turn with the exact cache, and the least and the most of them. A foreign cache's fill is a prefill of its own. "
        "What equal work differs by is in `kvdelta plot` and the record."
    ]
    return Section("costs", "What it takes", text, made)


def _bars(bench: Bench, folder: str, keys: Keys) -> list[Chart]:
    kinds = {"fill and read the suffix": costs.cost_rows(bench), "a decoding step": costs.step_rows(bench)}
    made = []
    for what, rows in kinds.items():
        data: list[Datum] = [
            {
                "s": keys.scheme(bench.contenders.get(row.name) or row.name, row.name),
                "facet": f"{what}, {row.context} tokens; {bench.model_name.partition(',')[0].rpartition('/')[2]}, {bench.device}, {folder}",
                "v": row.times_exact,
                "low": row.times_exact_least,
                "high": row.times_exact_most,
            }
            for row in rows
            if row.name not in ("exact", "exact again")
        ]
        if data:
            columns = [
                ("scheme", "", "text"),
                ("v", "times exact", "number"),
                ("low", "least", "number"),
                ("high", "most", "number"),
            ]
            most = max(data, key=lambda datum: datum["v"])
            said = f"Bars of the time of {what} over that of the exact cache, at most {number(most['v'])} times."
            made.append(
                Chart(
                    charts.bar_chart(f"{what}: time over exact's", max(datum["high"] for datum in data)),
                    columns,
                    said,
                    data,
                    line=charts.LINE,
                )
            )
    return made
