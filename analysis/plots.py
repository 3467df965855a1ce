"""Figures, one function each, drawn from records alone. Draw and save them inside `styled()`, which sets the fonts."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from scipy import special

from analysis import sensitivity
from analysis.measures import MEASURES, by_layer
from analysis.outliers import OUTLIER, channel_ratio, persistence
from analysis.style import (
    BASE,
    SIDE_LOOKS,
    SIDE_NAMES,
    WIDTH,
    binned,
    floored,
    look,
    scheme_label,
    spread,
    with_unit,
)
from harness import records
from harness.measurement import Arrays, Measurement

SIDES = ("key", "pre_rope_key", "value")
STRONG = 5.0  # the ratio from which outliers are called strong
HEAT = "magma"
ACTIVATION = "|x| (activation units)"


@dataclass(frozen=True)
class Series:
    """One panel of `measure_scatter`: points x (the measure) and y (the target), with the label and the canonical
    scheme name of each, and a note to stand above, such as a correlation."""

    measure_label: str
    x: np.ndarray
    y: np.ndarray
    labels: list[str]
    schemes: list[str]
    note: str = ""


@contextmanager
def styled(style: str | None = None) -> Iterator[None]:
    """Our fonts and lines, and above them a matplotlib style by name or .mplstyle file. ValueError: no such style."""
    if style is not None and style not in matplotlib.style.library and not Path(style).is_file():
        known = [name for name in matplotlib.style.available if not name.startswith("_")]
        guess = get_close_matches(style, known, n=1)
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        raise ValueError(f"no style {style!r}; {hint}give a .mplstyle file or one of {', '.join(known)}")
    with matplotlib.style.context([BASE, *([style] if style else [])], after_reset=True):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.svg, the same bytes each time, and NAME.png at 150 dpi; ValueError where they cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "kvdelta"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # the second file keeps the layout of the first
        paths.append(folder / f"{name}.{kind}")
        records.write(paths[-1], buffer.getvalue())
    return paths


def heat_maps(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """|x| of one head's keys (after and before RoPE, on one colour scale) and values, token by channel."""
    return _pictures(record, arrays, _sides(arrays), picture, surface=False)


def surfaces(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """The same as `heat_maps` in three dimensions, the key sides with one height."""
    return _pictures(record, arrays, _sides(arrays), picture, surface=True)


def channel_profile(record: Measurement, arrays: Arrays, picture: int = 0) -> Figure:
    """Mean and largest |x| of each channel of one head over all windows; outlier channels are named."""
    layer, head = _pictured(arrays, picture)
    at, h = record.measured_layers.index(layer), record.kv_heads.index(head)
    sides = _sides(arrays)
    what = f"Channels of layer {layer}, KV head {head}; named: mean over {OUTLIER:g} × the median channel"
    figure, panels = _panels(record, what, len(sides), 1, 1.55, sharex=True)
    for axes, side in zip(panels.flat, sides, strict=True):
        mean = arrays[f"{side}_mean_abs"].mean(axis=0)[at, h]
        largest = arrays[f"{side}_max"].max(axis=0)[at, h]
        channels, color = np.arange(len(mean)), SIDE_LOOKS[side]["color"]
        limit = OUTLIER * float(np.median(mean))
        axes.fill_between(channels, largest, step="mid", color=color, alpha=0.22, linewidth=0, label="largest |x|")
        axes.step(channels, mean, where="mid", color=color, label="mean |x|")
        axes.axhline(limit, color=_ink(), linestyle=":", linewidth=0.8, label=f"{OUTLIER:g} × median")
        axes.set(title=SIDE_NAMES[side], ylabel=ACTIVATION, xlim=(-1, len(mean)), ylim=(0, 1.32 * largest.max()))
        _name_channels(axes, np.flatnonzero(mean > limit), mean, 1.16 * float(largest.max()))
    panels[-1, 0].set_xlabel("channel (index)")
    _legend(figure, panels[0, 0].get_legend_handles_labels()[0])
    return figure


def ratio_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """Largest over median channel of mean |x| by layer: the largest over heads, and each head as a dot."""
    what = "How far the largest channel stands out, by layer (line: largest head; dots: each KV head)"
    figure, panels = _panels(record, what, 1, 1, 2.9)
    axes = panels[0, 0]
    for shift, side in _shifted(_sides(arrays)):
        ratio = channel_ratio(arrays[f"{side}_mean_abs"].mean(axis=0))
        _by_head(axes, record, ratio, ratio.max(axis=1), side, shift)
    axes.axhline(STRONG, color=_ink(), linestyle=":", linewidth=0.8, label=f"ratio {STRONG:g}")
    axes.set(xlabel="layer (index)", ylabel="largest / median channel of mean |x| (ratio)", yscale="log")
    _tidy_log(axes.yaxis)
    _legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def persistence_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """Overlap of the top channels between windows by layer: the mean over heads, and each head as a dot."""
    if len(record.settings.windows) < 2:
        raise ValueError("persistence compares windows: 2 are needed, and this record has 1")
    what = "Do the same channels stand out in every window? (line: mean over KV heads; dots: each)"
    figure, panels = _panels(record, what, 1, 1, 2.6)
    axes = panels[0, 0]
    for shift, side in _shifted(_sides(arrays)):
        lasting = persistence(arrays[f"{side}_mean_abs"])
        _by_head(axes, record, lasting, lasting.mean(axis=1), side, shift)
    axes.set(xlabel="layer (index)", ylabel="Jaccard overlap of top channels (0–1)", ylim=(-0.04, 1.04))
    _legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def token_norms(record: Measurement, arrays: Arrays, layers: int = 4) -> Figure:
    """Norm by token position of keys and values in a few layers, and the first token's norm over the median by layer."""
    what = "Norm by token (median over KV heads), and how the first token (the sink, ★) differs"
    figure, panels = _panels(record, what, 1, 3, 2.7)
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
        axes.xaxis.set_major_formatter(FuncFormatter(_number))
        _tidy_log(axes.yaxis)
    axes = panels[0, 2]
    for shift, side in _shifted(["key", "value"]):
        norms = arrays[f"{side}_norm"]
        sink = (norms[..., 0] / np.median(norms, axis=-1)).mean(axis=0)
        _by_head(axes, record, sink, np.median(sink, axis=1), side, shift)
    axes.axhline(1, color=_ink(), linestyle=":", linewidth=0.8)
    axes.set(title="first token / median token", xlabel="layer (index)", ylabel="norm (ratio)", yscale="log")
    _tidy_log(axes.yaxis)
    _legend(figure, handles + axes.get_legend_handles_labels()[0])
    return figure


def errors_by_layer(
    record: Measurement,
    arrays: Arrays,
    measures: Sequence[str] = ("key_error", "value_error", "attention_kl", "output_both"),
) -> Figure:
    """One panel a measure: the error of each scheme by layer, over all windows and heads."""
    rows = -(-len(measures) // 2)
    figure, panels = _panels(record, "Error of each scheme by layer", rows, min(2, len(measures)), 2.2)
    found = by_layer(arrays)
    for axes, name in zip(panels.flat, measures, strict=False):
        floor = _log_floor(axes, found[name])
        for i, scheme in enumerate(record.settings.contenders):
            _line(axes, record.measured_layers, found[name][i], scheme, i, len(record.settings.contenders), floor=floor)
        axes.set(xlabel="layer (index)", ylabel=with_unit(MEASURES[name].label))
        _tidy_log(axes.yaxis)
    _finish(figure, panels, len(measures), record.settings.contenders)
    return figure


def sensitivity_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """A row a side: mean KL and ΔNLL of quantizing one layer alone, with 95 % intervals over windows."""
    sides, windows = record.settings.measured["sides"], len(record.settings.windows)
    names = dict(zip(record.labels, record.settings.contenders, strict=True))
    found = sensitivity.layer_rows(record, arrays)
    whiskers = "; whiskers: 95 % interval over windows" if windows > 1 else ""
    figure, panels = _panels(record, f"What one quantized layer costs{whiskers}", len(sides), 2, 2.4)
    t = float(special.stdtrit(windows - 1, 0.975)) if windows > 1 else np.nan
    for (divergence, loss), side in zip(panels, sides, strict=True):
        at_side = [row for row in found if row["side"] == side]
        floor = _log_floor(divergence, np.array([row["kl"] for row in at_side]))
        for turn, (label, name) in enumerate(names.items()):
            rows = [row for row in at_side if row["scheme"] == label]
            kl, half = np.array([row["kl"] for row in rows]), t * np.array([row["kl_se"] for row in rows])
            _line(
                divergence,
                record.measured_layers,
                kl,
                name,
                turn,
                len(names),
                floor=floor,
                low=kl - half,
                high=kl + half,
            )
            low, high = (np.array([row[f"delta_nll_{end}"] for row in rows]) for end in ("low", "high"))
            _line(
                loss,
                record.measured_layers,
                np.array([row["delta_nll"] for row in rows]),
                name,
                turn,
                len(names),
                low=low,
                high=high,
            )
        _tidy_log(divergence.yaxis)
        loss.axhline(0, color=_ink(), linewidth=0.6, zorder=1)
        for axes, ylabel in ((divergence, "mean KL (nats per token)"), (loss, "ΔNLL (nats per token)")):
            axes.set(title=f"{SIDE_NAMES[side]} quantized", xlabel="layer (index)", ylabel=ylabel)
    _finish(figure, panels, panels.size, list(names.values()))
    return figure


def measure_scatter(points: Sequence[Series], target_label: str, title: str) -> Figure:
    """One panel a measure: the target against it, both on log scales; what is not above 0 is drawn at the edge."""
    columns = min(len(points), 2 if len(points) in (2, 4) else 3)
    figure, panels = _grid(title, -(-len(points) // columns), columns, 2.1)
    for axes, series in zip(panels.flat, points, strict=False):
        x, edge_x = floored(series.x)
        y, edge_y = floored(series.y)
        axes.set(xscale="log", yscale="log", xlabel=with_unit(series.measure_label))
        edge = edge_x | edge_y
        for name in dict.fromkeys(series.schemes):
            own = np.array([scheme == name for scheme in series.schemes])
            for chosen, face in ((own & ~edge, {}), (own & edge, {"markerfacecolor": "none"})):
                if chosen.any():
                    axes.plot(x[chosen], y[chosen], clip_on=False, **look(name, line=False) | face)
        lost = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
        notes = [
            series.note,
            f"{edge.sum()} at the edge: ≤ 0" if edge.any() else "",
            f"{lost} not finite" if lost else "",
        ]
        # above the panel, where no point can be
        axes.set_title("; ".join(filter(None, notes)), fontsize=7)
        _tidy_log(axes.xaxis)
        _tidy_log(axes.yaxis)
    for axes in panels[:, 0]:
        axes.set_ylabel(target_label)
    _finish(figure, panels, len(points), [name for series in points for name in series.schemes], lines=False)
    _settle(figure)
    for axes, series in zip(panels.flat, points, strict=False):
        _label_points(axes, figure.dpi, floored(series.x)[0], floored(series.y)[0], series.labels)
    return figure


def bits_against_loss(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """ΔNLL with its 95 % interval against the measured bits per number, from the rows of `summarize`; a lossless
    scheme, and one whose bytes were not measurable, is left out."""
    shown = [row for row in rows if row["bits"] is not None and row["name"] != "exact"]
    figure, panels = _grid(title, 1, 1, 3.6)
    axes = panels[0, 0]
    loss, low, high = (
        np.array([row[key] for row in shown], dtype=float) for key in ("delta_nll", "delta_nll_low", "delta_nll_high")
    )
    low, high = np.where(np.isnan(low), loss, low), np.where(np.isnan(high), loss, high)  # one window has no interval
    for i, row in enumerate(shown):
        ends = [[loss[i] - low[i]], [high[i] - loss[i]]]
        axes.errorbar(row["bits"], loss[i], yerr=ends, elinewidth=0.8, capsize=1.5, **look(row["name"], line=False))
    axes.set_xlabel("measured bits per number of K and V")
    if low.size and low.min() <= 0:
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.axhline(0, color=_ink(), linewidth=0.6, zorder=1)
        axes.set_ylabel("ΔNLL to exact (nats per token;\nlinear between ±0.001)")
    else:
        axes.set(yscale="log", ylabel="ΔNLL to exact (nats per token)")
    axes.margins(x=0.08)
    _finish(figure, panels, 1, [row["name"] for row in shown], lines=False)
    bits, names = np.array([row["bits"] for row in shown], dtype=float), [scheme_label(row["name"]) for row in shown]
    _settle(figure)
    _label_points(axes, figure.dpi, bits, loss, names, low, high)
    return figure


def allocation(bits_by_side: dict[str, dict[int, float]], title: str) -> Figure:
    """Measured bits of each layer, a bar for each side."""
    figure, panels = _grid(title, 1, 1, 2.5)
    axes, width = panels[0, 0], 0.8 / len(bits_by_side)
    for i, (side, bits) in enumerate(bits_by_side.items()):
        x = np.array(list(bits)) + (i - (len(bits_by_side) - 1) / 2) * width
        label = f"{SIDE_NAMES[side]} (mean {np.mean(list(bits.values())):.2f} bits)"
        hatch = "" if side == "key" else "//////"
        axes.bar(
            x, list(bits.values()), width, color=SIDE_LOOKS[side]["color"], hatch=hatch, edgecolor="white",
            linewidth=0.2, label=label,
        )  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="layer (index)", ylabel="measured bits per number")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _pictures(record: Measurement, arrays: Arrays, sides: list[str], picture: int, surface: bool) -> Figure:
    layer, head = _pictured(arrays, picture)
    images = {side: binned(arrays[f"picture_{side}"][0, picture], 96 if surface else 384) for side in sides}
    tokens = arrays[f"picture_{sides[0]}"].shape[2]
    key_top = max((float(image.max()) for side, (image, _) in images.items() if side != "value"), default=0.0)
    what = f"{ACTIVATION} of {SIDE_NAMES[sides[0]] if len(sides) == 1 else 'keys and values'}"
    height = 3.4 if not surface else 2.7 if len(sides) > 1 else 3.6
    figure = _figure(record, f"{what}, layer {layer}, KV head {head}", height, "first window")
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
            axes.set(zlim=(0, top), zlabel=ACTIVATION if len(sides) == 1 else "")
            axes.set_title(SIDE_NAMES[side], loc="center", y=0.9)
            axes.set_xlabel("channel (index)", labelpad=-5 if len(sides) > 1 else 0)
            axes.set_ylabel("token (position)", labelpad=-5 if len(sides) > 1 else 0)
            axes.locator_params(nbins=4)
            axes.tick_params(pad=-2)
            axes.view_init(elev=28, azim=-52)
            axes.set_box_aspect((4, 4, 3), zoom=0.84 if len(sides) > 1 else 0.8)
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
        raise ValueError(f"picture {picture}: this record kept {len(pictured)} heads, numbered from 0")
    return int(pictured[picture][0]), int(pictured[picture][1])


def _figure(record: Measurement, what: str, height: float, of: str = "") -> Figure:
    windows = len(record.settings.windows)
    counted = of or f"{windows} window{'s' if windows > 1 else ''}"
    return _blank(f"{what}\n{record.model_name}; {record.text_name}, {counted}", height)


def _blank(title: str, height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle("\n".join(fill(line, 105) for line in title.splitlines()), x=0.01, ha="left")
    return figure


def _panels(
    record: Measurement, what: str, rows: int, columns: int, height: float, **shared: Any
) -> tuple[Figure, Any]:
    figure = _figure(record, what, 0.75 + rows * height)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _grid(title: str, rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    figure = _blank(title, 0.75 + rows * height)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _ink() -> str:
    return matplotlib.rcParams["text.color"]


def _number(value: float, _: int = 0) -> str:
    return f"{value:g}"


def _tidy_log(axis: Axis) -> None:
    """Plain numbers by a log axis that spans little, powers of ten by one that spans much; never labels so close that
    they overlap."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high / low < 100:
        axis.set_major_locator(MaxNLocator(4) if high / low < 4 else LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(_number))


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


def _log_floor(axes: Axes, values: np.ndarray) -> float:
    """A log y axis, and the height at which what is not above 0 is drawn."""
    axes.set_yscale("log")
    drawn, moved = floored(values)
    if not moved.any():
        return 0.0
    axes.set_title("hollow ▽: 0 or less", loc="right", fontsize=6.5)
    return float(drawn[moved][0])


def _line(
    axes: Axes, x: Sequence[int], y: np.ndarray, name: str, turn: int, of: int, *, floor: float | None = None,
    low: np.ndarray | None = None, high: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Scheme `turn` of `of` over layers. floor: of a log axis. Where there are no whiskers, schemes take turns in
    marking layers, so that equal lines show the markers of both; with whiskers they lie beside each other."""
    whiskers, style = low is not None and high is not None, look(name)
    layers = np.array(x) + (0.5 * (turn - (of - 1) / 2) / of if whiskers else 0)
    moved = np.zeros(len(y), dtype=bool) if floor is None else y <= 0
    every = (turn % 2, 2) if of > 1 and len(layers) > 12 and not whiskers else (0, 1)
    axes.plot(layers, np.where(moved, np.nan, y), markevery=every, **style)
    if moved.any():
        at_floor: dict[str, Any] = {"linestyle": "none", "marker": "v", "markerfacecolor": "none"}
        axes.plot(layers[moved], np.full(int(moved.sum()), floor), **style | at_floor)
    if low is not None and high is not None:
        axes.vlines(layers[~moved], low[~moved], high[~moved], color=style["color"], linewidth=0.6, alpha=0.7)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _finish(figure: Figure, panels: Any, used: int, names: Sequence[str], lines: bool = True) -> None:
    """Empty panels go; one legend names each scheme once."""
    for axes in panels.flat[used:]:
        axes.remove()
    handles = []
    for name in dict.fromkeys(names):
        handles.append(Line2D([], [], label=scheme_label(name), **look(name, lines)))
    _legend(figure, handles)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(105 // (longest + 9))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _name_channels(axes: Axes, channels: np.ndarray, mean: np.ndarray, height: float) -> None:
    """The numbers of `channels` in a row at `height`, moved apart where they would overlap, each with a thin line."""
    places = spread(channels, len(mean) / 42, len(mean) - 1)
    for channel, place in zip(channels, places, strict=True):
        axes.plot((channel, place), np.array([mean[channel], 0.97 * height]), color=_ink(), linewidth=0.35, alpha=0.6)
        axes.text(place, height, str(channel), ha="center", va="bottom", fontsize=6.5)


def _settle(figure: Figure) -> None:
    """Lay the figure out, for good: labels are placed in what room there is."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _label_points(
    axes: Axes, dpi: float, x: np.ndarray, y: np.ndarray, labels: Sequence[str],
    low: np.ndarray | None = None, high: np.ndarray | None = None,
) -> None:  # fmt: skip
    """A label beside each point where there is room and no other point is nearer; the others stay without. The figure
    has its layout. low, high: ends of whiskers to keep off."""
    half = 3.2 * dpi / 72
    ends = (y, y if low is None else low, y if high is None else high)
    spots, bottoms, tops = (axes.transData.transform(np.column_stack([x, end])) for end in ends)
    taken = [
        Bbox.from_extents(px - half, min(py - half, bottom), px + half, max(py + half, top))
        for (px, py), (_, bottom), (_, top) in zip(spots, bottoms, tops, strict=True)
        if np.isfinite(px + py)
    ]
    for i, label in enumerate(labels):
        if not np.isfinite(spots[i]).all():
            continue
        text = axes.annotate(label, (x[i], y[i]), xytext=(0, 0), textcoords="offset points", fontsize=6)
        text.set_in_layout(False)
        box = text.get_window_extent()
        for side_x, side_y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            dx = side_x * (half + box.width / 2 + 2) - box.width / 2
            dy = side_y * (half + box.height / 2 + 1) - box.height / 2
            moved = box.translated(dx, dy)
            inside = np.all(moved.min >= axes.bbox.min) and np.all(moved.max <= axes.bbox.max)
            away = np.hypot(*(spots - np.clip(spots, moved.min, moved.max)).T)
            if inside and np.nanargmin(away) == i and not any(moved.overlaps(other) for other in taken):
                text.set_position((dx * 72 / dpi, dy * 72 / dpi))
                taken.append(moved)
                break
        else:
            text.remove()
