"""Tables of what the analyzer measured: for people, and every figure as json and csv for programs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading import outliers
from kvdelta.analysis.reading.ablations import AblationRow, AdditivityRow
from kvdelta.analysis.reading.agreement import AgreementRow
from kvdelta.analysis.reading.error_measures import ErrorRow
from kvdelta.analysis.reading.outliers import OutlierRow
from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.tables import Table, csv_text, interval, number, overlap, signed, table, windows_of
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.records.run import Header


def heading(record: Header) -> list[str]:
    settings = record.settings
    what = windows_of(settings, len(settings.windows))
    return [record.model_name, f"{record.text_name}: {what}, {settings.dtype} on {settings.device}", *overlap(settings)]


def as_text(values: Sequence[Mapping[str, Any]], format: str) -> str:
    """json or csv, every figure of every row."""
    if format == "json":
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    names = list(dict.fromkeys(name for row in values for name in row))
    return csv_text(names, [[row.get(name) for name in names] for row in values])


@dataclass(frozen=True)
class FailedRow(Row):
    """A scheme that has no figures, and why."""

    scheme: str
    error: str


def failed_rows(record: Measurement) -> list[FailedRow]:
    return [FailedRow(label, reason) for label, reason in record.failed.items()]


def with_failed(shown: Table, record: Measurement) -> Table:
    """A table of schemes with a line for each that has failed."""
    header, body = shown
    return header, [*body, *([label, "failed", *["–"] * (len(header) - 2)] for label in record.failed)]


# errors


def error_table(record: Measurement, arrays: Arrays, by: measures.By) -> Table:
    """The measures that people compare; by scheme also the layer with the largest output error."""
    rows = measures.error_rows(record, arrays, by)
    columns: dict[str, Callable[[ErrorRow], str]] = {"scheme": lambda row: row.scheme}
    if by != "scheme":
        columns["layer"] = lambda row: str(row.layer)
    if by == "head":
        columns["head"] = lambda row: str(row.head)
    shown = {
        "K error": "key_error", "dB": "key_sqnr", "V error": "value_error", "dB ": "value_sqnr", "logits": "logit_error",
        "scores": "score_error", "attn KL": "attention_kl", "out K": "output_key", "out V": "output_value",
        "output": "output_both",
    }  # fmt: skip
    if "square" in rows[0].measures:
        shown["Σ(g·e)²"] = "square"
    columns |= {title: lambda row, name=name: number(row.measures[name]) for title, name in shown.items()}
    if by == "scheme":
        output = measures.by_layer(arrays)["output_both"]
        at = output.argmax(axis=1)
        worst = {
            label: f"{record.measured_layers[at[i]]} ({number(output[i, at[i]])})"
            for i, label in enumerate(record.labels)
        }
        columns["worst layer"] = lambda row: worst[row.scheme] if row.measures["output_both"] else "–"
    return table(rows, columns)


ERRORS = """K, V error: ‖x−x̂‖/‖x‖ of the stored prefix, and SQNR in dB. logits: error of QKᵀ, each row minus its mean. scores: error
of the softmax. attn KL: nats a query. out K, out V, output: error of the attention output with K, V, or both as stored.
Σ(g·e)²: predicted loss, one backward pass. All pooled over layers, heads and windows."""


# outliers


def outlier_table(rows: Sequence[OutlierRow]) -> Table:
    """One row a layer: its most outlying head of keys, and of values."""
    best = {(row.side, row.layer): row for row in outliers.layer_rows(rows)}
    layers = sorted({layer for _, layer in best})
    columns: dict[str, Callable[[OutlierRow], str]] = {
        "layer": lambda row: str(row.layer),
        "K max/median": lambda row: number(row.ratio),
        "head": lambda row: str(row.head),
        "varying": lambda row: number(row.varying),
        "constant": lambda row: f"{100 * row.constant:.0f} %",
        "outlier channels": lambda row: ", ".join(map(str, row.outliers)) or "–",
        "max |K|": lambda row: number(row.max),
        "|mean|/sd": lambda row: number(row.offset),
        "top energy": lambda row: f"{100 * row.energy:.0f} %",
        "persistence": lambda row: number(row.persistence, 2),
        "sink": lambda row: number(row.sink, 2),
    }
    if ("pre_rope_key", layers[0]) in best:
        columns["pre-RoPE"] = lambda row: number(best["pre_rope_key", row.layer].ratio)
        columns["pre-RoPE varying"] = lambda row: number(best["pre_rope_key", row.layer].varying)
        columns["pre-RoPE constant"] = lambda row: f"{100 * best['pre_rope_key', row.layer].constant:.0f} %"
    columns["V max/median"] = lambda row: number(best["value", row.layer].ratio)
    columns["V sink"] = lambda row: number(best["value", row.layer].sink, 2)
    return table([best["key", layer] for layer in layers], columns)


OUTLIERS = """max/median: largest over median channel of mean |x|, the head with the largest. varying: the same of the sd, which is what a
channel is without its mean over tokens; constant: share of x² that the means have. |mean|/sd: DC offset of its largest
channel. outlier channels: over 3 times the median. top energy: share of x² in the top 1 % of channels (at least one).
persistence: overlap (Jaccard) of the top channels between windows. sink: norm of the first token over the median."""


# sensitivity


def sensitivity_table(rows: Sequence[AblationRow]) -> Table:
    """One row a layer; for each scheme and side its KL, and its ΔNLL where there is room."""
    columns: dict[str, Callable[[AblationRow], str]] = {"layer": lambda row: str(row.layer)}
    by_place = {(row.scheme, row.side, row.layer): row for row in rows}
    kinds = list(dict.fromkeys((row.scheme, row.side) for row in rows))
    for scheme, side in kinds:
        name = f"{scheme} {side}" if len(kinds) > 1 else ""

        def of(row: AblationRow, scheme: str = scheme, side: str = side) -> AblationRow:
            return by_place[scheme, side, row.layer]

        columns[f"{name} KL".strip()] = lambda row, of=of: number(of(row).kl)
        if len(kinds) <= 2:
            columns[f"{name} ΔNLL [95 %]".strip()] = lambda row, of=of: interval(
                of(row).delta_nll, of(row).delta_nll_low, of(row).delta_nll_high
            )
        if len(kinds) == 1:
            columns["Σ(g·e)²"] = lambda row, of=of: number(of(row).square)
            columns["Σ|g·e|"] = lambda row, of=of: number(of(row).absolute)
    first = kinds[0]
    return table([row for row in rows if (row.scheme, row.side) == first], columns)


def additivity_table(rows: Sequence[AdditivityRow]) -> Table:
    columns: dict[str, Callable[[AdditivityRow], str]] = {
        "scheme": lambda row: row.scheme,
        "side": lambda row: row.side,
        "Σ ΔNLL": lambda row: signed(row.sum_delta_nll, 4),
        "all layers": lambda row: signed(row.all_delta_nll, 4),
        "difference [95 %]": lambda row: interval(row.difference, row.difference_low, row.difference_high),
        "Σ KL": lambda row: number(row.sum_kl),
        "KL, all layers": lambda row: number(row.all_kl),
    }
    return table(rows, columns)


SENSITIVITY = """One layer quantized, all others exact. KL: mean KL(exact ‖ quantized) in nats a token. ΔNLL of one layer is noise at few
windows; KL is not. Σ(g·e)², Σ|g·e|: predicted from one backward pass, summed over windows."""


# relate


def relate_table(rows: Sequence[AgreementRow]) -> Table:
    columns: dict[str, Callable[[AgreementRow], str]] = {
        "measure": lambda row: row.label,
        "ρ with KL [95 %]": lambda row: interval(row.spearman_kl, row.spearman_kl_low, row.spearman_kl_high, 2),
        "r, log–log": lambda row: interval(row.pearson_kl, row.pearson_kl_low, row.pearson_kl_high, 2),
        "ρ with ΔNLL": lambda row: interval(row.spearman_delta, row.spearman_delta_low, row.spearman_delta_high, 2),
    }
    if rows[0].pairs is not None:
        columns["equal bits"] = lambda row: f"{row.right} of {row.pairs}"
    columns[""] = lambda row: "excludes agreement" if row.wrong else "worse than the best" if row.worse else ""
    return table(rows, columns)


RELATE = """ρ: Spearman, r: Pearson of logarithms; intervals: bootstrap over windows and points. equal bits: pairs of schemes with equal
bits that the measure orders as their KL is. worse than the best: the difference of ρ excludes 0."""
