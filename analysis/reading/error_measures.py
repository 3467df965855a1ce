"""The error measures: what each is called, how it follows from the sums of an errors record, and rows of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kvdelta.analysis.reading.rows import Row, plain_value
from kvdelta.harness.records.measurement import Arrays, Measurement

Values = dict[str, np.ndarray]  # by measure
Sums = np.ndarray | np.floating


@dataclass(frozen=True)
class Measure:
    """One error measure. label: with its unit, for tables and axes. sides: the ablations ("key", "value", "both") whose
    damage it can speak of. compute: from pooled sums. predicted: needs the gradient."""

    name: str
    label: str
    sides: frozenset[str]
    compute: Callable[[Arrays], np.ndarray]
    predicted: bool = False


def relative_error(error2: Sums, norm2: Sums) -> np.ndarray:
    """‖x−x̂‖ / ‖x‖; 0 where both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(error2 == 0, 0.0, np.sqrt(error2 / norm2))


def sqnr(error2: Sums, norm2: Sums) -> np.ndarray:
    """Signal to quantization noise in dB, 10·log10(‖x‖² / ‖x−x̂‖²); inf where nothing was lost."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error2 == 0, np.inf, 10 * np.log10(norm2 / error2))


def cosine(dot: np.ndarray, norm2: np.ndarray, decoded2: np.ndarray) -> np.ndarray:
    """x·x̂ / (‖x‖·‖x̂‖); nan where one of them is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return dot / np.sqrt(norm2 * decoded2)


def _relative(error: str, norm: str) -> Callable[[Arrays], np.ndarray]:
    return lambda sums: relative_error(sums[error], sums[norm])


def _distance(side: str) -> Callable[[Arrays], np.ndarray]:
    def compute(s: Arrays) -> np.ndarray:
        near = 1 - cosine(s[f"{side}_dot"], s[f"{side}_norm2"], s[f"{side}_decoded2"])
        return np.where(s[f"{side}_error2"] == 0, 0.0, np.maximum(near, 0))

    return compute


def _both(name: str) -> Callable[[Arrays], np.ndarray]:
    return lambda sums: sums[f"key_{name}"] + sums[f"value_{name}"]


KEY, VALUE, BOTH = frozenset({"key", "both"}), frozenset({"value", "both"}), frozenset({"both"})

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("key_error", "K relative error", KEY, _relative("key_error2", "key_norm2")),
        Measure("key_cosine", "K 1 − cosine", KEY, _distance("key")),
        Measure("key_max", "K max |error|", KEY, lambda s: s["key_max"]),
        Measure("value_error", "V relative error", VALUE, _relative("value_error2", "value_norm2")),
        Measure("value_cosine", "V 1 − cosine", VALUE, _distance("value")),
        Measure("value_max", "V max |error|", VALUE, lambda s: s["value_max"]),
        Measure("logit_error", "centred-logit error", KEY, _relative("logit_error2", "logit_norm2")),
        Measure("score_error", "attention-score error", KEY, _relative("score_error2", "score_norm2")),
        Measure("attention_kl", "attention KL (nats)", KEY, lambda s: s["attention_kl"] / s["rows"]),
        Measure("output_key", "output error, K only", KEY, _relative("output_error2_key", "output_norm2")),
        Measure("output_value", "output error, V only", VALUE, _relative("output_error2_value", "output_norm2")),
        Measure("output_both", "output error", BOTH, _relative("output_error2_both", "output_norm2")),
        Measure("key_square", "predicted Σ(g·e)², K", KEY, lambda s: s["key_square"], True),
        Measure("value_square", "predicted Σ(g·e)², V", VALUE, lambda s: s["value_square"], True),
        Measure("square", "predicted Σ(g·e)²", BOTH, _both("square"), True),
        Measure("key_absolute", "predicted Σ|g·e|, K (nats)", KEY, lambda s: s["key_absolute"], True),
        Measure("value_absolute", "predicted Σ|g·e|, V (nats)", VALUE, lambda s: s["value_absolute"], True),
        Measure("absolute", "predicted Σ|g·e| (nats)", BOTH, _both("absolute"), True),
    )
}
# SQNR in dB is −20·log10 of the relative error and ranks as it does, so it is shown and not ranked again.


def pooled(arrays: Arrays, axes: tuple[int, ...]) -> Arrays:
    """Sums (maxima of what is a maximum) over axes of [windows, schemes, layers, KV heads]."""
    return {
        name: array.max(axis=axes) if name.endswith("_max") else array.sum(axis=axes) for name, array in arrays.items()
    }


def values_of(sums: Arrays) -> Values:
    """Every measure that these pooled sums allow, and the SQNR of keys and values in dB, each shaped as the sums."""
    values = {name: m.compute(sums) for name, m in MEASURES.items() if not m.predicted or "key_square" in sums}
    return values | {f"{side}_sqnr": sqnr(sums[f"{side}_error2"], sums[f"{side}_norm2"]) for side in ("key", "value")}


def by_scheme(arrays: Arrays) -> Values:
    """Over all windows, layers and heads: [schemes]."""
    return values_of(pooled(arrays, (0, 2, 3)))


def by_layer(arrays: Arrays) -> Values:
    """Over all windows and heads: [schemes, layers]."""
    return values_of(pooled(arrays, (0, 3)))


def by_head(arrays: Arrays) -> Values:
    """Over all windows: [schemes, layers, KV heads]."""
    return values_of(pooled(arrays, (0,)))


By = Literal["scheme", "layer", "head"]


@dataclass(frozen=True)
class ErrorRow(Row):
    """Every error measure of a scheme: over all layers, of one layer, or of one KV head of it."""

    scheme: str
    measures: Mapping[str, float]
    layer: int | None = None
    head: int | None = None

    def plain(self) -> dict[str, Any]:
        places = super().plain()
        measures = places.pop("measures")
        return places | {name: plain_value(value) for name, value in measures.items()}


def error_rows(record: Measurement, arrays: Arrays, by: By = "scheme") -> list[ErrorRow]:
    """One row a scheme, a scheme and layer, or a scheme, layer and KV head."""
    measured = {"scheme": by_scheme, "layer": by_layer, "head": by_head}[by](arrays)
    rows = []
    shape = next(iter(measured.values())).shape
    for place in np.ndindex(*shape):
        layer = record.measured_layers[place[1]] if len(shape) > 1 else None
        head = record.kv_heads[place[2]] if len(shape) > 2 else None
        here = {name: float(values[place]) for name, values in measured.items()}
        rows.append(ErrorRow(record.labels[place[0]], here, layer, head))
    return rows
