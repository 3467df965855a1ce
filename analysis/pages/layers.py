"""Sections on why: errors by layer beside what a layer costs, error against loss, and which channels stand out."""

from collections.abc import Sequence

import numpy as np

from kvdelta.analysis.pages import charts
from kvdelta.analysis.pages.keys import Keys, model_of
from kvdelta.analysis.pages.parts import Chart, Datum, Section
from kvdelta.analysis.reading import ablations, agreement, outliers, questions
from kvdelta.analysis.reading.error_measures import MEASURES, by_layer
from kvdelta.analysis.reading.joined import Joined
from kvdelta.analysis.reading.tables import number
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.schemes.errors import UserError

SHOWN = ("key_error", "value_error", "attention_kl", "output_both")
SIDE_NAMES = {"key": "keys", "value": "values", "both": "keys and values", "pre_rope_key": "keys before RoPE"}
TAGGED = ("left", "right")  # where the layers that cost most are named
BEST = {"layers": 2, "schemes": 3}  # measures of a question that are drawn
LAYER = "layer"


def layers_section(measured: Sequence[Joined], keys: Keys) -> Section | None:
    made = [chart for joined in measured for chart in _heat_maps(joined, keys)]
    if not made:
        return None
    text = [
        "What a scheme does to keys, values and attention in each layer, beside what it costs to quantize that layer alone, all others exact, "
        "where that was measured. Brighter is more; every picture has its own scale."
    ]
    return Section("layers", "Errors by layer, and what a layer costs", text, made)


def _heat_maps(joined: Joined, keys: Keys) -> list[Chart]:
    made = []
    for _, record, arrays in joined.errors:
        made += [_error_map(record, arrays, name, keys) for name in SHOWN]
    for _, record, arrays in joined.sensitivity:
        made.append(_cost_map(record, arrays, keys))
    return [chart for chart in made if chart is not None]


def _error_map(record: Measurement, arrays: Arrays, name: str, keys: Keys) -> Chart | None:
    values, label = by_layer(arrays)[name], MEASURES[name].label
    data: list[Datum] = [
        {
            "s": keys.scheme(scheme, record.labels[i]),
            "c": keys.source(record, protocol=False),
            "facet": f"{label}, {model_of(record)}",
            "x": layer,
            "v": _positive(values[i, at]),
        }
        for i, scheme in enumerate(record.settings.contenders)
        for at, layer in enumerate(record.measured_layers)
    ]
    known = [(datum["v"], datum) for datum in data if datum["v"] is not None]
    if not known:
        return None
    most, worst = max(known, key=lambda one: one[0])
    summary = (
        f"Heat map of the {label} of {len(record.labels)} schemes over {len(record.measured_layers)} layers; the most is "
        f"{number(most)} in layer {worst['x']}."
    )
    spec = charts.heat_chart([value for value, _ in known], record.measured_layers, LAYER, label)
    return Chart(
        spec, [("scheme", "", "text"), ("x", LAYER, "whole"), ("v", label, "number")], summary, data, line=charts.SQUARE
    )


def _cost_map(record: Measurement, arrays: Arrays, keys: Keys) -> Chart | None:
    names = dict(zip(record.labels, record.settings.contenders, strict=True))
    data: list[Datum] = [
        {
            "s": keys.scheme(names[row.scheme], row.scheme),
            "c": keys.source(record, protocol=False),
            "facet": f"KL of one layer's {SIDE_NAMES[row.side]}, {model_of(record)}",
            "x": row.layer,
            "v": _positive(row.kl if row.read else np.nan),
            "delta_nll": row.delta_nll,
            "delta_nll_low": row.delta_nll_low,
            "delta_nll_high": row.delta_nll_high,
        }
        for row in ablations.layer_rows(record, arrays)
    ]
    known = [(datum["v"], datum) for datum in data if datum["v"] is not None]
    if not known:
        return None
    most, worst = max(known, key=lambda one: one[0])
    summary = (
        f"Heat map of the KL when one layer alone is quantized; the most is {number(most, 2)} in layer {worst['x']}."
    )
    columns = [("scheme", "", "text"), ("x", LAYER, "whole"), ("v", "KL", "nats"), ("delta_nll", "ΔNLL", "signed"),
               ("delta_nll_low", "ΔNLL from", "signed"), ("delta_nll_high", "to", "signed")]  # fmt: skip
    spec = charts.heat_chart(
        [value for value, _ in known], record.measured_layers, LAYER, "KL, one layer quantized, nats a token"
    )
    return Chart(spec, columns, summary, data, line=charts.SQUARE)


def relations_section(measured: Sequence[Joined], keys: Keys) -> Section | None:
    """Error measures against KL, of the questions that `kvdelta relate` asks of the same records."""
    made, lines = [], []
    for joined in measured:
        try:
            asked = questions.questions_of(joined)
        except UserError:  # nothing to relate
            continue
        where = model_of(joined.headers[0][1])
        for question in asked:
            ranked = agreement.ranking(question)
            made += _scatters(question, ranked, where, keys)
            best = ranked[0]
            lines.append(
                f"{where}, {question.title}: {best.label} ranks KL best, ρ = {best.spearman_kl:.2f} "
                f"[{best.spearman_kl_low:.2f}, {best.spearman_kl_high:.2f}]."
            )
    if not made:
        return None
    text = ["Does the error tell the loss? Each mark is a layer, or a scheme; ρ is Spearman's, 95 % of a bootstrap over windows and marks.", *lines]  # fmt: skip
    return Section("relations", "Error against loss", text, made)


def _scatters(
    question: questions.Question, ranked: Sequence[agreement.AgreementRow], where: str, keys: Keys
) -> list[Chart]:
    x, kl, delta = question.draw(np.arange(question.windows))
    layers = question.bits is None
    made = []
    for row in ranked[: BEST["layers" if layers else "schemes"]]:
        at = question.measures.index(row.measure)
        note = f"{row.label}: ρ {row.spearman_kl:.2f} [{row.spearman_kl_low:.2f}, {row.spearman_kl_high:.2f}]"
        data: list[Datum] = [
            {
                "s": keys.scheme(name, name if layers else point),
                "facet": f"{note}. {where}, {question.title}",
                "place": f"layer {point}" if layers else None,
                "x": _positive(x[at, i]),
                "kl": float(kl[i]),
                "delta_nll": float(delta[i]),
            }
            for i, (point, name) in enumerate(zip(question.points, question.names, strict=True))
        ]
        data = [datum for datum in data if datum["x"] is not None and datum["kl"] > 0]
        loudest = sorted(data, key=lambda datum: -datum["kl"]) if layers else []
        for datum, side in zip(loudest, TAGGED, strict=False):
            datum[side] = datum["place"]
        if data:
            columns = [("scheme", "", "text"), ("place", "", "text"), ("x", row.label, "number"), ("kl", "KL", "nats"), ("delta_nll", "ΔNLL", "signed")]  # fmt: skip
            spec = charts.scatter_chart([d["x"] for d in data], [d["kl"] for d in data], row.label, "KL, nats a token")
            made.append(Chart(spec, columns, f"Scatter of KL against {note}.", data, key=not layers))
    return made


def outliers_section(measured: Sequence[Joined], keys: Keys) -> Section | None:
    made, text = [], []
    for joined in measured:
        for _, record, arrays in joined.outliers:
            rows = outliers.head_rows(record, arrays)
            made += [_picture(record, arrays, side, rows, keys) for side in ("key", "pre_rope_key", "value") if f"{side}_max" in arrays]  # fmt: skip
            text += [f"{model_of(record)}: {sentence}." for sentence in outliers.sentences(rows)]
    if not made:
        return None
    what = "The largest |x| of each channel over all tokens, of the head of each layer that stands out most. A bright column is a channel that is loud in every layer; a bright square, in one."  # fmt: skip
    return Section("outliers", "Channels that stand out", [what, *text], made)


def _picture(record: Measurement, arrays: Arrays, side: str, rows: Sequence[outliers.OutlierRow], keys: Keys) -> Chart:
    heads = {row.layer: row for row in outliers.layer_rows(rows) if row.side == side}
    largest = arrays[f"{side}_max"].max(axis=0)  # [layers, heads, channels]
    data: list[Datum] = [
        {"c": keys.source(record, protocol=False), "facet": f"{SIDE_NAMES[side]}, {model_of(record)}", "layer": layer, "head": heads[layer].head,
         "x": channel, "v": _positive(round(float(value), 4))}
        for at, layer in enumerate(record.measured_layers)
        for channel, value in enumerate(largest[at, record.kv_heads.index(heads[layer].head)])
    ]  # fmt: skip
    worst = max(heads.values(), key=lambda row: row.ratio)
    summary = (
        f"Heat map of the largest |x| by layer and channel of the {SIDE_NAMES[side]}; channel {worst.channel} of head {worst.head} in layer "
        f"{worst.layer} stands out most, {number(worst.ratio)} times the median channel."
    )
    spec = charts.picture_chart(
        [datum["v"] for datum in data if datum["v"]],
        range(largest.shape[2]),
        record.measured_layers,
        "largest |x| (activation units, log scale)",
    )
    columns = [
        ("layer", LAYER, "whole"),
        ("head", "KV head", "whole"),
        ("x", "channel", "whole"),
        ("v", "largest |x|", "number"),
    ]
    return Chart(spec, columns, summary, data)


def _positive(value: float | np.floating) -> float | None:
    """For a log scale; None of what has no place on it."""
    return float(value) if np.isfinite(value) and value > 0 else None
