"""`outliers`: which channels of keys and values stand out, by layer and KV head, and whether they stay the same."""

import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.selection import chosen
from harness import measurement
from harness.capture import pre_rope_keys
from harness.comparison import Subject
from harness.measurement import Arrays, Measurement
from harness.options import Options
from harness.protocols import prefill
from harness.windows import Window

OUTLIER = 3.0  # a channel is named where its mean |x| is over 3 times the head's median
TOP = 0.01  # of the channels, at least one: what persistence and energy are of
PICTURES = 4  # so many heads at most are kept whole, for figures, where a user chose no more


def measure_outliers(
    options: Options,
    subject: Subject,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    pre_rope: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Measurement, Path]:
    """Statistics of the prefix's keys and values, [layers, KV heads, channels] for every window; the first window's
    full tensors of a few heads. layers, heads: None is all. pre_rope: also of keys before rotation.

    ValueError: a layer or head that does not exist; a model whose rotation cannot be undone.
    """
    model = subject.loaded.model
    full, there = measurement.places_of(subject)
    measured, kv_heads = chosen("layer", layers, full), chosen("KV head", heads, there)

    def one_window(window: Window, first: bool) -> Arrays:
        started = time.perf_counter()
        prefilled = prefill(model, window.prefix)
        collected: dict[str, list[dict[str, np.ndarray]]] = {}
        kept: dict[str, list[Tensor]] = {}
        for layer in measured:
            held: Any = prefilled.layers[layer]
            sides: dict[str, Any] = {"key": held.keys, "value": held.values}
            if pre_rope:
                sides["pre_rope_key"] = pre_rope_keys(model, layer, sides["key"])
            for side, x in sides.items():
                x = x[0, kv_heads].float()
                collected.setdefault(side, []).append(statistics_of(x))
                kept.setdefault(side, []).append(x)
        arrays = {
            f"{side}_{name}": np.stack([layer[name] for layer in by_layer])
            for side, by_layer in collected.items()
            for name in by_layer[0]
        }
        if first:
            places = _places(arrays["key_mean_abs"])
            arrays["pictured"] = np.array([(measured[at], kv_heads[h]) for at, h in places])
            for side, tensors in kept.items():
                x = np.stack([tensors[at][h].cpu().numpy() for at, h in places])
                arrays[f"picture_{side}"] = np.clip(x, -65504, 65504).astype(np.float16)
        position = subject.windows.index(window) + 1
        on_note(f"window {position}/{len(subject.windows)}  {time.perf_counter() - started:.1f} s")
        return arrays

    also = {"layers": measured, "heads": kv_heads, "pre_rope": pre_rope}
    return measurement.measure("outliers", options, subject, [], also, measured, kv_heads, one_window, on_note)


def _places(mean_abs: np.ndarray) -> list[tuple[int, int]]:
    """(layer, head) positions to keep whole: all of a small choice, else the head whose keys stand out most."""
    ratio = channel_ratio(mean_abs)
    order = np.argsort(-ratio, axis=None)
    count = ratio.size if ratio.size <= PICTURES else 1
    return sorted((int(at // ratio.shape[1]), int(at % ratio.shape[1])) for at in order[:count])


def statistics_of(x: Float[Tensor, "heads tokens channels"]) -> dict[str, np.ndarray]:
    """Per channel [heads, channels]: mean, sd, max |x|, mean |x|, mean x² and excess kurtosis (0 for a normal
    distribution, and where a channel is constant); per token [heads, tokens]: norm. In float64."""
    x = x.double()
    mean = x.mean(dim=1, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dim=1)
    fourth = centred.pow(4).mean(dim=1)
    kurtosis = torch.where(variance > 0, fourth / variance.square() - 3, 0.0)
    found = {
        "mean": mean[:, 0],
        "sd": variance.sqrt(),
        "max": x.abs().amax(dim=1),
        "mean_abs": x.abs().mean(dim=1),
        "mean_square": x.square().mean(dim=1),
        "kurtosis": kurtosis,
        "norm": x.norm(dim=2),
    }
    return {name: tensor.cpu().numpy().astype(np.float32) for name, tensor in found.items()}


def channel_ratio(mean_abs: np.ndarray) -> np.ndarray:
    """Largest over median channel of mean |x|; channels last."""
    return mean_abs.max(axis=-1) / np.median(mean_abs, axis=-1)


def top_channels(mean_abs: np.ndarray) -> int:
    return max(1, int(np.ceil(TOP * mean_abs.shape[-1])))


def persistence(mean_abs: np.ndarray) -> np.ndarray:
    """Mean Jaccard overlap of the top channels between pairs of windows, [...]; mean_abs [windows, ..., channels].

    nan for one window. 1: the same channels stand out in every window.
    """
    count = top_channels(mean_abs)
    top = np.zeros(mean_abs.shape, dtype=bool)
    np.put_along_axis(top, np.argsort(-mean_abs, axis=-1)[..., :count], True, axis=-1)
    overlaps = [
        (top[a] & top[b]).sum(axis=-1) / (top[a] | top[b]).sum(axis=-1) for a, b in combinations(range(len(top)), 2)
    ]
    return np.mean(overlaps, axis=0) if overlaps else np.full(mean_abs.shape[1:-1], np.nan)


Row = dict[str, Any]


def head_rows(record: Measurement, arrays: Arrays) -> list[Row]:
    """One row a side, layer and KV head, over all windows: its most outlying channel and the measures of the head."""
    sides = [side for side in ("key", "pre_rope_key", "value") if f"{side}_mean_abs" in arrays]
    rows: list[Row] = []
    for side in sides:
        each = arrays[f"{side}_mean_abs"]
        mean_abs = each.mean(axis=0)
        ratio, lasting = channel_ratio(mean_abs), persistence(each)
        square = arrays[f"{side}_mean_square"].mean(axis=0)
        share = np.sort(square, axis=-1)[..., -top_channels(square) :].sum(axis=-1) / square.sum(axis=-1)
        norms = arrays[f"{side}_norm"]
        sink = (norms[..., 0] / np.median(norms, axis=-1)).mean(axis=0)
        mean, sd = arrays[f"{side}_mean"].mean(axis=0), np.sqrt((arrays[f"{side}_sd"] ** 2).mean(axis=0))
        for at, h in np.ndindex(ratio.shape):
            channel = int(mean_abs[at, h].argmax())
            median = float(np.median(mean_abs[at, h]))
            rows.append(
                {
                    "side": side,
                    "layer": record.measured_layers[at],
                    "head": record.kv_heads[h],
                    "ratio": float(ratio[at, h]),
                    "channel": channel,
                    "outliers": [int(c) for c in np.flatnonzero(mean_abs[at, h] > OUTLIER * median)],
                    "max": float(arrays[f"{side}_max"][:, at, h, channel].max()),
                    "offset": float(abs(mean[at, h, channel]) / sd[at, h, channel]) if sd[at, h, channel] else np.inf,
                    "kurtosis": float(arrays[f"{side}_kurtosis"][:, at, h, channel].mean()),
                    "energy": float(share[at, h]),
                    "persistence": float(lasting[at, h]),
                    "sink": float(sink[at, h]),
                }
            )
    return rows


def layer_rows(rows: list[Row]) -> list[Row]:
    """For each side and layer its most outlying head: a layer's figure is the largest over its heads."""
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        place = (row["side"], row["layer"])
        if place not in best or row["ratio"] > best[place]["ratio"]:
            best[place] = row
    return list(best.values())


def sentences(rows: list[Row]) -> list[str]:
    """What there is to see, in words: the range of the ratio by side, and in how many layers keys are the outlier side."""
    by_side: dict[str, dict[int, Row]] = {}
    for row in layer_rows(rows):
        by_side.setdefault(row["side"], {})[row["layer"]] = row
    said = []
    names = {"key": "keys", "pre_rope_key": "keys before RoPE", "value": "values"}
    for side, layers in by_side.items():
        ratios = [row["ratio"] for row in layers.values()]
        over = sum(ratio > 5 for ratio in ratios)
        said.append(
            f"{names[side]}: largest over median channel {min(ratios):.1f} to {max(ratios):.1f}; over 5 in {over} of "
            f"{len(ratios)} layers"
        )
    key, value = by_side["key"], by_side["value"]
    more = sum(key[layer]["ratio"] > value[layer]["ratio"] for layer in key)
    return [*said, f"keys stand out more than values in {more} of {len(key)} layers"]
