"""Figures of an outliers record."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.plots.canvas import ink, legend, panel_figure, plain_number, record_figure, tidy_log
from analysis.plots.style import SIDE_LOOKS, SIDE_NAMES, binned, spread
from analysis.reading.outlier_rows import OUTLIER, channel_ratio, persistence
from harness.records.measurement import Arrays, Measurement
from schemes.errors import UserError

SIDES = ("key", "pre_rope_key", "value")
STRONG = 5.0  # the ratio from which outliers are called strong
HEAT = "magma"
ACTIVATION = "|x| (activation units)"


def heat_maps(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """|x| of one head's keys (after and before RoPE, on one colour scale) and values, token by channel."""
    return _pictures(record, arrays, picture, surface=False)


def surfaces(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """The same as `heat_maps` in three dimensions, the key sides with one height."""
    return _pictures(record, arrays, picture, surface=True)


def channel_profile(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """Mean and largest |x| of each channel of one head over all windows; outlier channels are named."""
    layer, head = _pictured(arrays, picture)
    at, h = record.measured_layers.index(layer), record.kv_heads.index(head)
    sides = _sides(arrays)
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
    for shift, side in _shifted(_sides(arrays)):
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
    for shift, side in _shifted(_sides(arrays)):
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


def _pictures(record: Measurement, arrays: Arrays, picture: int, surface: bool) -> Figure:
    sides = _sides(arrays)
    layer, head = _pictured(arrays, picture)
    images = {side: binned(arrays[f"picture_{side}"][0, picture], 96 if surface else 384) for side in sides}
    tokens = arrays[f"picture_{sides[0]}"].shape[2]
    key_top = max((float(image.max()) for side, (image, _) in images.items() if side != "value"), default=0.0)
    what, height = f"{ACTIVATION} of keys and values", 2.7 if surface else 3.4
    figure = record_figure(record, f"{what}, layer {layer}, KV head {head}", height, "first window")
    last: dict[bool, Any] = {}
    for i, side in enumerate(sides):
        image, step = images[side]
        top, (rows, channels) = (float(image.max()) if side == "value" else key_top), image.shape
        if surface:
            figure.set_layout_engine("none")
            axes: Any = figure.add_axes(((i - 0.05) / len(sides), -0.04, 1 / len(sides), 1.0), projection="3d")
            x, y = np.meshgrid(np.arange(channels), np.arange(rows) * step)
            axes.plot_surface(
                x, y, image, cmap=HEAT, vmin=0, vmax=top, rcount=rows, ccount=channels, linewidth=0,
                antialiased=False, rasterized=True,
            )  # fmt: skip
            axes.patch.set_visible(False)  # it would cover its neighbour's labels
            axes.set(zlim=(0, top))
            axes.set_title(SIDE_NAMES[side], loc="center", y=0.9)
            axes.set_xlabel("channel (index)", labelpad=-5)
            axes.set_ylabel("token (position)", labelpad=-5)
            axes.locator_params(nbins=4)
            axes.tick_params(pad=-2)
            axes.view_init(elev=28, azim=-52)
            axes.set_box_aspect((4, 4, 3), zoom=0.84)
            continue
        axes = figure.add_subplot(1, len(sides), i + 1)
        shown = axes.imshow(
            image, cmap=HEAT, vmin=0, vmax=top, aspect="auto", origin="lower", interpolation="nearest",
            extent=(-0.5, channels - 0.5, 0.5, rows * step + 0.5),
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set(title=SIDE_NAMES[side], xlabel="channel (index)", ylim=(0.5, tokens + 0.5))
        if i == 0:
            axes.set_ylabel(f"token (position; max of each {step})" if step > 1 else "token (position)")
        last[side == "value"] = (shown, axes)
    for shown, axes in last.values():
        figure.colorbar(shown, ax=axes, label=ACTIVATION, pad=0.03)
    return figure


def _sides(arrays: Arrays) -> list[str]:
    return [side for side in SIDES if f"{side}_mean_abs" in arrays]


def _pictured(arrays: Arrays, picture: int) -> tuple[int, int]:
    pictured = arrays["pictured"][0]
    if not 0 <= picture < len(pictured):
        raise UserError(f"picture {picture}: this record kept {len(pictured)} heads, numbered from 0")
    return int(pictured[picture][0]), int(pictured[picture][1])


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
