"""What all figures share: fonts, files, titles, axes, legends and labels."""

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from kvdelta.analysis.plots.style import BASE, WIDTH, floored, look, scheme_label
from kvdelta.harness.records.measurement import Measurement
from kvdelta.harness.records.writing import write_file
from kvdelta.schemes.errors import UserError


@contextmanager
def styled(style: str | None = None) -> Iterator[None]:
    """Our fonts and lines, and above them a matplotlib style by name or .mplstyle file. ValueError: no such style."""
    if style is not None and style not in matplotlib.style.library and not os.path.isfile(style):
        known = [name for name in matplotlib.style.available if not name.startswith("_")]
        guess = get_close_matches(style, known, n=1)
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        raise UserError(f"no style {style!r}; {hint}give a .mplstyle file or one of {', '.join(known)}")
    with matplotlib.style.context(BASE, after_reset=True):
        if style is not None:
            try:
                matplotlib.style.use(style)
            except (OSError, ValueError) as error:
                raise UserError(f"the style {style!r} cannot be read: {error}") from None
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.svg, the same bytes each time, and NAME.png at 150 dpi; ValueError where they cannot be written."""
    paths: list[Path] = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "kvdelta"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        _keep_layout(figure)  # the second file has the layout of the first
        paths.append(folder / f"{name}.{kind}")
        write_file(paths[-1], buffer.getvalue())
    return paths


def record_figure(record: Measurement, what: str, height: float, of: str = "") -> Figure:
    windows = len(record.settings.windows)
    counted = of or f"{windows} window{'s' if windows > 1 else ''}"
    return blank(f"{what}\n{record.model_name}; {record.text_name}, {counted}", height)


def blank(title: str, height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # else every text that is measured makes a canvas of its own
    figure.suptitle("\n".join(fill(line, 95) for line in title.splitlines()), x=0.01, ha="left")
    return figure


def panel_figure(
    record: Measurement, what: str, rows: int, columns: int, height: float, **shared: Any
) -> tuple[Figure, Any]:
    figure = record_figure(record, what, 0.75 + rows * height)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def grid_figure(title: str, rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    figure = blank(title, 0.75 + rows * height)
    return figure, figure.subplots(rows, columns, squeeze=False)


def ink() -> str:
    return matplotlib.rcParams["text.color"]


def plain_number(value: float, _: int = 0) -> str:
    return f"{value:g}"


def power_of_ten(value: float, _: int = 0) -> str:
    exponent = math.log10(abs(value)) if value else 0.5
    if abs(exponent - round(exponent)) > 1e-9:
        return plain_number(value)
    digits = str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if value < 0 else ''}10{digits}"


def tidy_log(axis: Axis) -> None:
    """Plain numbers by a log axis that spans little, powers of ten by one that spans much; never labels so close that
    they overlap."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(power_of_ten))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", label1On=False)  # empty ones are measured too
    if low > 0 and high / low < 100:
        axis.set_major_locator(MaxNLocator(4) if high / low < 4 else LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(plain_number))


def log_floor(axes: Axes, values: np.ndarray) -> float:
    """A log y axis, and the height at which what is not above 0 is drawn."""
    axes.set_yscale("log")
    drawn, moved = floored(values)
    if not moved.any():
        return 0.0
    axes.set_title("hollow ▽: 0 or less", loc="right", fontsize=6.5)
    return float(drawn[moved][0])


def scheme_line(
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


def scheme_legend(figure: Figure, panels: Any, used: int, names: Sequence[str], lines: bool = True) -> None:
    """Empty panels go; one legend names each scheme once."""
    for axes in panels.flat[used:]:
        axes.remove()
    handles = []
    for name in dict.fromkeys(names):
        handles.append(Line2D([], [], label=scheme_label(name), **look(name, lines)))
    legend(figure, handles)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(105 // (longest + 9))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def settle(figure: Figure) -> None:
    """Lay the figure out, for good: labels are placed in what room there is."""
    if layout := figure.get_layout_engine():
        with _without_minor_ticks(figure):
            layout.execute(figure)  # alone: drawing all of it, which lays it out too, takes three times as long
    _keep_layout(figure)


@contextmanager
def _without_minor_ticks(figure: Figure) -> Iterator[None]:
    """They have no labels, so no layout needs them, and on log axes they are most of what it would measure."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    minor = [(one, one.get_minor_locator()) for one in axes if isinstance(one.get_minor_formatter(), NullFormatter)]
    for axis, _ in minor:
        axis.set_minor_locator(NullLocator())
    try:
        yield
    finally:
        for axis, locator in minor:
            axis.set_minor_locator(locator)


def _keep_layout(figure: Figure) -> None:
    with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # not "none": with any engine, that one too, a figure is drawn twice to be saved


def label_points(
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
