"""Rows of an outliers record: which channels stand out, by side, layer and KV head, and whether they stay the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kvdelta.analysis.reading.rows import Row
from kvdelta.harness.records.measurement import Arrays, Measurement

OUTLIER = 3.0  # a channel is named where its mean |x| is over 3 times the head's median
TOP = 0.01  # of the channels, at least one: what persistence and energy are of


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


@dataclass(frozen=True)
class OutlierRow(Row):
    """One KV head of a layer and side, over all windows: its most outlying channel, and what the head is like.

    ratio: largest over median channel of mean |x|. varying: the same of the sd, what is left of a channel without its mean over
    tokens; constant: share of x² that the means have. outliers: the channels over 3 times the median. Of `channel`, the
    largest: max |x|, offset |mean|/sd, kurtosis. energy: share of x² in the top channels; persistence: their overlap
    between windows (nan for one). sink: norm of the first token over the median.
    """

    side: str
    layer: int
    head: int
    ratio: float
    varying: float
    constant: float
    channel: int
    outliers: tuple[int, ...]
    max: float
    offset: float
    kurtosis: float
    energy: float
    persistence: float
    sink: float


def head_rows(record: Measurement, arrays: Arrays) -> list[OutlierRow]:
    """One row a side, layer and KV head."""
    sides = [side for side in ("key", "pre_rope_key", "value") if f"{side}_mean_abs" in arrays]
    rows = []
    for side in sides:
        each = arrays[f"{side}_mean_abs"]
        mean_abs = each.mean(axis=0)
        ratio, lasting = channel_ratio(mean_abs), persistence(each)
        square = arrays[f"{side}_mean_square"].mean(axis=0)
        share = np.sort(square, axis=-1)[..., -top_channels(square) :].sum(axis=-1) / square.sum(axis=-1)
        norms = arrays[f"{side}_norm"]
        sink = (norms[..., 0] / np.median(norms, axis=-1)).mean(axis=0)
        mean, sd = arrays[f"{side}_mean"].mean(axis=0), np.sqrt((arrays[f"{side}_sd"] ** 2).mean(axis=0))
        varying = channel_ratio(sd)
        constant = (arrays[f"{side}_mean"] ** 2).mean(axis=0).sum(axis=-1) / square.sum(axis=-1)
        for at, h in np.ndindex(ratio.shape):
            channel = int(mean_abs[at, h].argmax())
            median = float(np.median(mean_abs[at, h]))
            rows.append(
                OutlierRow(
                    side=side,
                    layer=record.measured_layers[at],
                    head=record.kv_heads[h],
                    ratio=float(ratio[at, h]),
                    varying=float(varying[at, h]),
                    constant=float(constant[at, h]),
                    channel=channel,
                    outliers=tuple(int(c) for c in np.flatnonzero(mean_abs[at, h] > OUTLIER * median)),
                    max=float(arrays[f"{side}_max"][:, at, h, channel].max()),
                    offset=float(abs(mean[at, h, channel]) / sd[at, h, channel]) if sd[at, h, channel] else np.inf,
                    kurtosis=float(arrays[f"{side}_kurtosis"][:, at, h, channel].mean()),
                    energy=float(share[at, h]),
                    persistence=float(lasting[at, h]),
                    sink=float(sink[at, h]),
                )
            )
    return rows


def layer_rows(rows: Sequence[OutlierRow]) -> list[OutlierRow]:
    """For each side and layer its most outlying head: a layer's figure is the largest over its heads."""
    best: dict[tuple[str, int], OutlierRow] = {}
    for row in rows:
        place = (row.side, row.layer)
        if place not in best or row.ratio > best[place].ratio:
            best[place] = row
    return list(best.values())


def sentences(rows: Sequence[OutlierRow]) -> list[str]:
    """What there is to see, in words: the range of the ratio by side, and in how many layers keys are the outlier side."""
    by_side: dict[str, dict[int, OutlierRow]] = {}
    for row in layer_rows(rows):
        by_side.setdefault(row.side, {})[row.layer] = row
    lines = []
    names = {"key": "keys", "pre_rope_key": "keys before RoPE", "value": "values"}
    for side, layers in by_side.items():
        ratios = [row.ratio for row in layers.values()]
        over = sum(ratio > 5 for ratio in ratios)
        lines.append(
            f"{names[side]}: largest over median channel {min(ratios):.1f} to {max(ratios):.1f}; over 5 in {over} of "
            f"{len(ratios)} layers; without each channel's mean over tokens at most {max(r.varying for r in layers.values()):.1f}"
        )
    key, value = by_side["key"], by_side["value"]
    more = sum(key[layer].ratio > value[layer].ratio for layer in key)
    return [*lines, f"keys stand out more than values in {more} of {len(key)} layers"]
