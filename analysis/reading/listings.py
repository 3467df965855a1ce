"""The analyzer's rows as tables for people, and as json and csv for programs."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.reading import error_measures as measures
from analysis.reading import outlier_rows, tables
from harness.records.measurement import Arrays, Measurement
from harness.records.run import Header

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def heading(record: Header) -> list[str]:
    settings = record.settings
    count = len(settings.windows)
    what = f"{count} window{'s' * (count != 1)}, prefix {settings.window_length - settings.score_length} + suffix {settings.score_length} tokens"
    return [record.model_name, f"{record.text_name}: {what}, {settings.dtype} on {settings.device}"]


def as_text(rows: Sequence[Row], format: str) -> str:
    """json or csv, every figure of every row."""
    plain = tables.finite(list(rows))
    if format == "json":
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in plain for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()


def table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> Table:
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞"
    if value == 0:
        return "0"
    if abs(value) >= 1000 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def interval(row: Row, name: str, digits: int = 4) -> str:
    """A figure with its 95 % interval, where it has one."""
    figure = tables.signed(row[name], digits)
    if math.isnan(row[f"{name}_low"]):
        return figure
    return f"{figure} [{tables.signed(row[f'{name}_low'], digits)}, {tables.signed(row[f'{name}_high'], digits)}]"


# errors


def error_rows(record: Measurement, arrays: Arrays, by: str = "scheme") -> list[Row]:
    """One row a scheme, a scheme and layer, or a scheme, layer and KV head, with every error measure."""
    figures = {"scheme": measures.by_scheme, "layer": measures.by_layer, "head": measures.by_head}[by](arrays)
    rows = []
    for place in np.ndindex(next(iter(figures.values())).shape):
        row: Row = {"scheme": record.labels[place[0]]}
        if len(place) > 1:
            row["layer"] = record.measured_layers[place[1]]
        if len(place) > 2:
            row["head"] = record.kv_heads[place[2]]
        rows.append(row | {name: float(figure[place]) for name, figure in figures.items()})
    return rows


def error_table(record: Measurement, arrays: Arrays, by: str) -> Table:
    """The measures that people compare; by scheme also the layer with the largest output error."""
    rows = error_rows(record, arrays, by)
    places = {"scheme": [], "layer": ["layer"], "head": ["layer", "head"]}[by]
    columns: dict[str, Callable[[Row], str]] = {"scheme": lambda row: row["scheme"]}
    columns |= {place: lambda row, place=place: str(row[place]) for place in places}
    columns |= {
        "K error": lambda row: number(row["key_error"]),
        "dB": lambda row: number(row["key_sqnr"]),
        "V error": lambda row: number(row["value_error"]),
        "dB ": lambda row: number(row["value_sqnr"]),
        "logits": lambda row: number(row["logit_error"]),
        "scores": lambda row: number(row["score_error"]),
        "attn KL": lambda row: number(row["attention_kl"]),
        "out K": lambda row: number(row["output_key"]),
        "out V": lambda row: number(row["output_value"]),
        "output": lambda row: number(row["output_both"]),
    }
    if "square" in rows[0]:
        columns["Σ(g·e)²"] = lambda row: number(row["square"])
    if by == "scheme":
        worst = measures.by_layer(arrays)["output_both"]
        at = worst.argmax(axis=1)
        found = {
            label: f"{record.measured_layers[at[i]]} ({number(worst[i, at[i]])})"
            for i, label in enumerate(record.labels)
        }
        columns["worst layer"] = lambda row: found[row["scheme"]] if row["output_both"] else "–"
    return table(rows, columns)


ERRORS = """K, V error: ‖x−x̂‖/‖x‖ of the stored prefix, and SQNR in dB. logits: error of QKᵀ, each row minus its mean. scores: error
of the softmax. attn KL: nats a query. out K, out V, output: error of the attention output with K, V, or both as stored.
Σ(g·e)²: predicted loss, one backward pass. All pooled over layers, heads and windows."""


# outliers


def outlier_table(rows: Sequence[Row]) -> Table:
    """One row a layer: its most outlying head of keys, and of values."""
    best = {(row["side"], row["layer"]): row for row in outlier_rows.layer_rows(list(rows))}
    layers = sorted({layer for _, layer in best})
    columns: dict[str, Callable[[Row], str]] = {
        "layer": lambda row: str(row["layer"]),
        "K max/median": lambda row: number(row["ratio"]),
        "head": lambda row: str(row["head"]),
        "outlier channels": lambda row: ", ".join(map(str, row["outliers"])) or "–",
        "max |K|": lambda row: number(row["max"]),
        "|mean|/sd": lambda row: number(row["offset"]),
        "top energy": lambda row: f"{100 * row['energy']:.0f} %",
        "persistence": lambda row: number(row["persistence"], 2),
        "sink": lambda row: number(row["sink"], 2),
    }
    if ("pre_rope_key", layers[0]) in best:
        columns["pre-RoPE"] = lambda row: number(best["pre_rope_key", row["layer"]]["ratio"])
    columns["V max/median"] = lambda row: number(best["value", row["layer"]]["ratio"])
    columns["V sink"] = lambda row: number(best["value", row["layer"]]["sink"], 2)
    return table([best["key", layer] for layer in layers], columns)


OUTLIERS = """max/median: largest over median channel of mean |x|, the head with the largest. |mean|/sd: DC offset of its largest
channel. outlier channels: over 3 times the median. top energy: share of x² in the top 1 % of channels (at least one).
persistence: overlap (Jaccard) of the top channels between windows. sink: norm of the first token over the median."""


# sensitivity


def sensitivity_table(rows: Sequence[Row]) -> Table:
    """One row a layer; for each scheme and side its KL, and its ΔNLL where there is room."""
    columns: dict[str, Callable[[Row], str]] = {"layer": lambda row: str(row["layer"])}
    by_place = {(row["scheme"], row["side"], row["layer"]): row for row in rows}
    kinds = list(dict.fromkeys((row["scheme"], row["side"]) for row in rows))
    for scheme, side in kinds:
        name = f"{scheme} {side}" if len(kinds) > 1 else ""

        def of(row: Row, scheme: str = scheme, side: str = side) -> Row:
            return by_place[scheme, side, row["layer"]]

        columns[f"{name} KL".strip()] = lambda row, of=of: number(of(row)["kl"])
        if len(kinds) <= 2:
            columns[f"{name} ΔNLL [95 %]".strip()] = lambda row, of=of: interval(of(row), "delta_nll")
        if len(kinds) == 1:
            columns["Σ(g·e)²"] = lambda row, of=of: number(of(row)["square"])
            columns["Σ|g·e|"] = lambda row, of=of: number(of(row)["absolute"])
    first = kinds[0]
    return table([row for row in rows if (row["scheme"], row["side"]) == first], columns)


def additivity_table(rows: Sequence[Row]) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "scheme": lambda row: row["scheme"],
        "side": lambda row: row["side"],
        "Σ ΔNLL": lambda row: tables.signed(row["sum_delta_nll"], 4),
        "all layers": lambda row: tables.signed(row["all_delta_nll"], 4),
        "difference [95 %]": lambda row: interval(row, "difference"),
        "Σ KL": lambda row: number(row["sum_kl"]),
        "KL, all layers": lambda row: number(row["all_kl"]),
    }
    return table(rows, columns)


SENSITIVITY = """One layer quantized, all others exact. KL: mean KL(exact ‖ quantized) in nats a token. ΔNLL of one layer is noise at few
windows; KL is not. Σ(g·e)², Σ|g·e|: predicted from one backward pass, summed over windows."""


# relate


def relate_table(rows: Sequence[Row]) -> Table:
    columns: dict[str, Callable[[Row], str]] = {
        "measure": lambda row: row["label"],
        "ρ with KL [95 %]": lambda row: interval(row, "spearman_kl", 2),
        "r, log–log": lambda row: interval(row, "pearson_kl", 2),
        "ρ with ΔNLL": lambda row: interval(row, "spearman_delta", 2),
    }
    if "pairs" in rows[0]:
        columns["equal bits"] = lambda row: f"{row['right']} of {row['pairs']}"
    columns[""] = lambda row: "excludes agreement" if row["wrong"] else "worse than the best" if row["worse"] else ""
    return table(rows, columns)


RELATE = """ρ: Spearman, r: Pearson of logarithms; intervals: bootstrap over windows and points. equal bits: pairs of schemes with equal
bits that the measure orders as their KL is. worse than the best: the difference of ρ excludes 0."""
