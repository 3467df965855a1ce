"""Figures of an outliers record: channels, layers and tokens."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kvdelta.analysis.plots.canvas import ink, legend, panel_figure, plain_number, tidy_log
from kvdelta.analysis.plots.pictures import ACTIVATION, drawn_sides, pictured_head
from kvdelta.analysis.plots.style import SIDE_LOOKS, SIDE_NAMES, spread
from kvdelta.analysis.reading.outliers import OUTLIER, channel_ratio, persistence
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.schemes.errors import UserError

STRONG = 5.0  # the ratio from which outliers are called strong


def channel_profile(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """Mean and largest |x| of each channel of one head over all windows; outlier channels are named."""
    layer, head = pictured_head(arrays, picture)
    at, h = record.measured_layers.index(layer), record.kv_heads.index(head)
    sides = drawn_sides(arrays)
    what = f"Channels of layer {layer}, KV head {head}; named: mean over {OUTLIER:g} × the median channel"
    figure, panels = panel_figure(record, what, len(sides), 1, 1.55, sharex=True)
    for axes, side in zip(panels.flat, sides, strict=True):
        mean = arrays[f"{side}_mean_abs"].mean(axis=0)[at, h]
        largest = arrays[f"{side}_max"].max(axis=0)[at, h]
        channels, color = np.arange(len(mean)), SIDE_LOOKS[side]["color"]
        limit = OUTLIER * float(np.median(mean))
        axes.fill_between(channels, largest, step="mid", color=color, alpha=0.22, linewidth=0, label="largest |x|")
        axes.step(channels, mean, where="mid", color=color, label="mean |x|")
        axes.axhline(limit, color=ink(), linestyle=":", linewidth=0.8, label=f"{OUTLIER:g} × median")
        axes.set(title=SIDE_NAMES[side], ylabel=ACTIVATION, xlim=(-1, len(mean)), ylim=(0, 1.32 * largest.max()))
        _name_channels(axes, np.flatnonzero(mean > limit), mean, 1.16 * float(largest.max()))
    panels[-1, 0].set_xlabel("channel (index)")
    legend(figure, panels[0, 0].get_legend_handles_labels()[0])
    return figure


def ratio_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """Largest over median channel of mean |x| by layer: the largest over heads, and each head as a dot."""
    what = "How far the largest channel stands out, by layer (line: largest head; dots: each KV head)"
    figure, panels = panel_figure(record, what, 1, 1, 2.9)
    axes = panels[0, 0]
    for shift, side in _shifted(drawn_sides(arrays)):
        ratio = channel_ratio(arrays[f"{side}_mean_abs"].mean(axis=0))
        _by_head(axes, record, ratio, ratio.max(axis=1), side, shift)
    axes.axhline(STRONG, color=ink(), linestyle=":", linewidth=0.8, label=f"ratio {STRONG:g}")
    axes.set(xlabel="layer (index)", ylabel="largest / median channel of mean |x| (ratio)", yscale="log")
    tidy_log(axes.yaxis)
    legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def persistence_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """Overlap of the top channels between windows by layer: the mean over heads, and each head as a dot."""
    if len(record.settings.windows) < 2:
        raise UserError("persistence compares windows: 2 are needed, and this record has 1")
    what = "Do the same channels stand out in every window? (line: mean over KV heads; dots: each)"
    figure, panels = panel_figure(record, what, 1, 1, 2.6)
    axes = panels[0, 0]
    for shift, side in _shifted(drawn_sides(arrays)):
        lasting = persistence(arrays[f"{side}_mean_abs"])
        _by_head(axes, record, lasting, lasting.mean(axis=1), side, shift)
    axes.set(xlabel="layer (index)", ylabel="Jaccard overlap of top channels (0–1)", ylim=(-0.04, 1.04))
    legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def token_norms(record: Measurement, arrays: Arrays, layers: int = 4) -> Figure:
    """Norm by token position of keys and values in a few layers, and the first token's norm over the median by layer."""
    what = "Norm by token (median over KV heads), and how the first token (the sink, ★) differs"
    figure, panels = panel_figure(record, what, 1, 3, 2.7)
    chosen = np.unique(np.linspace(0, len(record.measured_layers) - 1, layers).round().astype(int))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    dashes = ["-", "--", "-.", ":"]
    handles: list[Any] = []
    for axes, side in zip(panels[0], ("key", "value"), strict=False):
        norms = np.median(arrays[f"{side}_norm"].mean(axis=0), axis=1)
        edges = np.unique(np.geomspace(1, norms.shape[1] + 1, 60).round().astype(int))
        spans = list(pairwise(edges))
        middle = [np.sqrt(first * (last - 1)) for first, last in spans]
        for i, at in enumerate(chosen):
            by_span = [np.median(norms[at, first - 1 : last - 1]) for first, last in spans]
            label = f"layer {record.measured_layers[at]}"
            axes.plot(middle, by_span, color=colors[i], linestyle=dashes[i % 4], label=label)
            axes.plot(1, norms[at, 0], marker="*", markersize=7, color=colors[i], clip_on=False, zorder=3)
        handles = axes.get_legend_handles_labels()[0]
        axes.set(title=SIDE_NAMES[side], xlabel="token (position)", xscale="log", yscale="log")
        axes.set(ylabel="L2 norm (activation units)" if side == "key" else "")
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        tidy_log(axes.yaxis)
    axes = panels[0, 2]
    for shift, side in _shifted(["key", "value"]):
        norms = arrays[f"{side}_norm"]
        sink = (norms[..., 0] / np.median(norms, axis=-1)).mean(axis=0)
        _by_head(axes, record, sink, np.median(sink, axis=1), side, shift)
    axes.axhline(1, color=ink(), linestyle=":", linewidth=0.8)
    axes.set(title="first token / median token", xlabel="layer (index)", ylabel="norm (ratio)", yscale="log")
    tidy_log(axes.yaxis)
    legend(figure, handles + axes.get_legend_handles_labels()[0])
    return figure


def _shifted(sides: Sequence[str]) -> list[tuple[float, str]]:
    """Sides with a small shift each, so that their dots lie beside each other."""
    return [(0.22 * (i - (len(sides) - 1) / 2), side) for i, side in enumerate(sides)]


def _by_head(axes: Axes, record: Measurement, by_head: np.ndarray, line: np.ndarray, side: str, shift: float) -> None:
    layers, side_look = np.array(record.measured_layers), SIDE_LOOKS[side]
    axes.plot(
        layers + shift,
        line,
        label=SIDE_NAMES[side],
        markersize=3.5,
        **side_look,
    )
    x = np.repeat(layers + shift, by_head.shape[1])
    axes.plot(
        x,
        by_head.ravel(),
        linestyle="none",
        marker=".",
        markersize=2.5,
        color=side_look["color"],
        alpha=0.55,
        clip_on=False,
    )
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _name_channels(axes: Axes, channels: np.ndarray, mean: np.ndarray, height: float) -> None:
    """The numbers of `channels` in a row at `height`, moved apart where they would overlap, each with a thin line."""
    places = spread(channels, len(mean) / 42, len(mean) - 1)
    for channel, place in zip(channels, places, strict=True):
        axes.plot((channel, place), np.array([mean[channel], 0.97 * height]), color=ink(), linewidth=0.35, alpha=0.6)
        axes.text(place, height, str(channel), ha="center", va="bottom", fontsize=6.5)
