"""Figures, one function each, drawn from records alone. Draw and save them inside `styled()`, which sets the fonts."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import special

from analysis import sensitivity
from analysis.measures import MEASURES, by_layer
from analysis.outliers import OUTLIER, channel_ratio, persistence
from analysis.style import BASE, scheme_label, scheme_style
from harness import records
from harness.measurement import Arrays, Measurement

SIDES = ("key", "pre_rope_key", "value")
SIDE_NAMES = {"key": "keys", "pre_rope_key": "keys before RoPE", "value": "values", "both": "keys and values"}
# Tol's high-contrast colours: their greys differ, and none of them is a scheme's
SIDE_LOOKS: dict[str, dict[str, Any]] = {
    "key": {"color": "#004488", "marker": "o", "linestyle": "-"},
    "pre_rope_key": {"color": "#DDAA33", "marker": "s", "linestyle": "--"},
    "value": {"color": "#BB5566", "marker": "^", "linestyle": "-."},
}
STRONG = 5.0  # the ratio from which outliers are called strong
HEAT = "magma"
ACTIVATION = "|x| (activation units)"


@dataclass(frozen=True)
class Series:
    """One panel of `measure_scatter`: points x (the measure) and y (the target), with the label and the canonical
    scheme name of each, and a note for the corner, such as a correlation."""

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
        paths.append(folder / f"{name}.{kind}")
        records.write(paths[-1], buffer.getvalue())
    return paths


def token_channel(record: Measurement, arrays: Arrays, side: str, picture: int = 0, surface: bool = False) -> Figure:
    """|x| of every token and channel of one head in the first window, as a heat map or a surface."""
    return _pictures(record, arrays, [side], picture, surface)


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
    figure, panels = _panels(record, what, len(sides), 1, 1.45, sharex=True)
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
    _plain_log(axes)
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
    what = "Norm of keys and values by token, and how the first token (the sink, ★) differs"
    figure, panels = _panels(record, what, 1, 3, 2.7)
    chosen = np.unique(np.linspace(0, len(record.measured_layers) - 1, layers).round().astype(int))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    dashes = ["-", "--", "-.", ":"]
    handles: list[Any] = []
    for axes, side in zip(panels[0], ("key", "value"), strict=False):
        norms = np.median(arrays[f"{side}_norm"].mean(axis=0), axis=1)
        edges = np.unique(np.geomspace(1, norms.shape[1] + 1, 60).round().astype(int))
        spans = list(zip(edges[:-1], edges[1:], strict=True))
        middle = [np.sqrt(first * (last - 1)) for first, last in spans]
        for i, at in enumerate(chosen):
            by_span = [np.median(norms[at, first - 1 : last - 1]) for first, last in spans]
            look = {"color": colors[i], "linestyle": dashes[i % 4], "label": f"layer {record.measured_layers[at]}"}
            axes.plot(middle, by_span, **look)
            axes.plot(1, norms[at, 0], marker="*", markersize=7, color=colors[i], clip_on=False, zorder=3)
        handles = axes.get_legend_handles_labels()[0]
        axes.set(title=SIDE_NAMES[side], xlabel="token (position)", xscale="log", yscale="log")
        axes.set(ylabel="L2 norm (activation units)" if side == "key" else "")
        axes.xaxis.set_major_formatter(FuncFormatter(_number))
        _plain_log(axes)
    axes = panels[0, 2]
    for shift, side in _shifted(["key", "value"]):
        norms = arrays[f"{side}_norm"]
        sink = (norms[..., 0] / np.median(norms, axis=-1)).mean(axis=0)
        _by_head(axes, record, sink, np.median(sink, axis=1), side, shift)
    axes.axhline(1, color=_ink(), linestyle=":", linewidth=0.8)
    axes.set(title="first token / median token", xlabel="layer (index)", ylabel="norm (ratio)", yscale="log")
    _plain_log(axes)
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
        _log_floor(axes, found[name])
        for i, scheme in enumerate(record.settings.contenders):
            _line(axes, record.measured_layers, found[name][i], scheme)
        axes.set(xlabel="layer (index)", ylabel=_unit(MEASURES[name].label))
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
        _log_floor(divergence, np.array([row["kl"] for row in at_side]))
        for label, name in names.items():
            rows = [row for row in at_side if row["scheme"] == label]
            kl, half = np.array([row["kl"] for row in rows]), t * np.array([row["kl_se"] for row in rows])
            _line(divergence, record.measured_layers, kl, name, kl - half, kl + half)
            low, high = (np.array([row[f"delta_nll_{end}"] for row in rows]) for end in ("low", "high"))
            _line(loss, record.measured_layers, np.array([row["delta_nll"] for row in rows]), name, low, high)
        loss.axhline(0, color=_ink(), linewidth=0.8)
        for axes, ylabel in ((divergence, "mean KL (nats per token)"), (loss, "ΔNLL (nats per token)")):
            axes.set(title=f"{SIDE_NAMES[side]} quantized", xlabel="layer (index)", ylabel=ylabel)
    _finish(figure, panels, panels.size, list(names.values()))
    return figure


def measure_scatter(points: Sequence[Series], target_label: str, title: str) -> Figure:
    """One panel a measure: the target against it, both on log scales; what is not above 0 is drawn at the edge."""
    columns = min(len(points), 2 if len(points) in (2, 4) else 3)
    figure, panels = _grid(title, -(-len(points) // columns), columns, 2.1)
    for axes, series in zip(panels.flat, points, strict=False):
        x, edge_x = _floored(series.x)
        y, edge_y = _floored(series.y)
        axes.set(xscale="log", yscale="log", xlabel=_unit(series.measure_label))
        edge = edge_x | edge_y
        for name in dict.fromkeys(series.schemes):
            own, style = np.array([scheme == name for scheme in series.schemes]), scheme_style(name)
            look: dict[str, Any] = {"linestyle": "none", "marker": style.marker, "color": style.color, "clip_on": False}
            axes.plot(x[own & ~edge], y[own & ~edge], **look, **_face(name))
            axes.plot(x[own & edge], y[own & edge], **look, markerfacecolor="none", alpha=0.8)
        lost = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
        notes = [
            series.note,
            f"{edge.sum()} at the edge: ≤ 0" if edge.any() else "",
            f"{lost} not finite" if lost else "",
        ]
        # above the panel, where no point can be
        axes.set_title("; ".join(filter(None, notes)), fontsize=7)
        if axes in panels[:, 0]:
            axes.set_ylabel(target_label)
    _finish(figure, panels, len(points), [name for series in points for name in series.schemes])
    for axes, series in zip(panels.flat, points, strict=False):
        _label_points(figure, axes, _floored(series.x)[0], _floored(series.y)[0], series.labels)
    return figure


def bits_against_loss(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """ΔNLL with its 95 % interval against the measured bits per number, from the rows of `summarize`; a lossless
    scheme, and one whose bytes were not measurable, is left out."""
    shown = [row for row in rows if row["bits"] is not None and row["name"] != "exact"]
    figure, panels = _grid(title, 1, 1, 3.6)
    axes = panels[0, 0]
    loss = np.array([row["delta_nll"] for row in shown], dtype=float)
    for row in shown:
        ends = np.array([[row["delta_nll"] - row["delta_nll_low"]], [row["delta_nll_high"] - row["delta_nll"]]])
        style = scheme_style(row["name"])
        axes.errorbar(
            row["bits"], row["delta_nll"], yerr=None if np.isnan(ends).any() else ends, color=style.color,
            marker=style.marker, markersize=6, elinewidth=0.8, capsize=2, linestyle="none", **_face(row["name"]),
        )  # fmt: skip
    axes.set(xlabel="measured bits per number of K and V", ylabel="ΔNLL to exact (nats per token)")
    if len(loss) and loss.min() <= 0:
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.axhline(0, color=_ink(), linewidth=0.8)
    else:
        axes.set_yscale("log")
    axes.margins(x=0.08)
    _finish(figure, panels, 1, [row["name"] for row in shown], lines=False)
    _label_points(
        figure, axes, np.array([row["bits"] for row in shown]), loss, [scheme_label(row["name"]) for row in shown]
    )
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
