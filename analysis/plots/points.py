"""Figures of points: error measures against losses, and losses against bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvdelta.analysis.plots.canvas import grid_figure, ink, label_points, scheme_legend, settle, tidy_log
from kvdelta.analysis.plots.style import floored, look, scheme_label, with_unit
from kvdelta.analysis.reading.rows import left_out
from kvdelta.analysis.reading.summary import SummaryRow


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


def measure_scatter(points: Sequence[Series], target_label: str, title: str) -> Figure:
    """One panel a measure: the target against it, both on log scales; what is not above 0 is drawn at the edge."""
    columns = min(len(points), 2 if len(points) in (2, 4) else 3)
    figure, panels = grid_figure(title, -(-len(points) // columns), columns, 2.1)
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
        # above the panel, where no point can be; y: there are no ticks above it that it must be moved off
        axes.set_title("; ".join(filter(None, notes)), fontsize=7, y=1.0)
        tidy_log(axes.xaxis)
        tidy_log(axes.yaxis)
    for axes in panels[:, 0]:
        axes.set_ylabel(target_label)
    scheme_legend(figure, panels, len(points), [name for series in points for name in series.schemes], lines=False)
    settle(figure)
    for axes, series in zip(panels.flat, points, strict=False):
        label_points(axes, figure.dpi, floored(series.x)[0], floored(series.y)[0], series.labels)
    return figure


def has_point(row: SummaryRow) -> bool:
    """Whether there is a loss to draw against bits."""
    return not row.refused and row.bits is not None and row.name != "exact"


MANY = 24
"""Schemes beyond which a legend is longer than its figure."""


def bits_against_loss(rows: Sequence[SummaryRow], title: str) -> Figure:
    """ΔNLL with its 95 % interval against the measured bits per number, from the rows of `summarize`; a lossless
    scheme, one whose bytes were not measurable, and one whose score is refused are left out, the last by name. Of many schemes, mean KL against bits,
    and names for those that no other beats at as many bits or fewer."""
    shown = [row for row in rows if has_point(row)]
    missing = left_out({row.scheme: row.refused for row in rows if row.refused})
    figure, panels = grid_figure("\n".join(filter(None, [title, missing])), 1, 1, 3.6)
    axes = panels[0, 0]
    axes.set_xlabel("measured bits per number of K and V")
    axes.margins(x=0.08)
    draw = _divergence if len(shown) > MANY else _loss
    height, low, high, named = draw(axes, shown)
    tidy_log(axes.yaxis)
    if draw is _loss:
        scheme_legend(figure, panels, 1, [row.name for row in shown], lines=False)
    bits, names = np.array([row.bits for row in shown], dtype=float), [scheme_label(row.name) for row in shown]
    settle(figure)
    places = np.flatnonzero(named)
    label_points(axes, figure.dpi, bits[places], height[places], [names[i] for i in places], low[places], high[places])
    return figure


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _loss(axes: Axes, shown: Sequence[SummaryRow]) -> Drawn:
    """ΔNLL, its interval, and that all get a name."""
    ends = [(row.bits, row.delta_nll, row.delta_nll_low, row.delta_nll_high) for row in shown]
    bits, loss, low, high = np.array(ends, dtype=float).reshape(-1, 4).T
    low, high = np.where(np.isnan(low), loss, low), np.where(np.isnan(high), loss, high)  # one window has no interval
    for i, row in enumerate(shown):
        whiskers = [[loss[i] - low[i]], [high[i] - loss[i]]]
        axes.errorbar(bits[i], loss[i], yerr=whiskers, elinewidth=0.8, capsize=1.5, **look(row.name, line=False))
    if low.size and low.min() <= 0:
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.axhline(0, color=ink(), linewidth=0.6, zorder=1)
        axes.set_ylabel("ΔNLL to exact (nats per token;\nlinear between ±0.001)")
    else:
        axes.set(yscale="log", ylabel="ΔNLL to exact (nats per token)")
    return loss, low, high, np.ones(len(shown), dtype=bool)


def _divergence(axes: Axes, shown: Sequence[SummaryRow]) -> Drawn:
    """Mean KL, its interval of two standard errors, and who is beaten by nobody."""
    bits, kl = np.array([(row.bits, row.kl) for row in shown], dtype=float).T
    errors = 2 * np.array([row.kl_se if np.isfinite(row.kl_se) else 0.0 for row in shown])
    as_good = (bits[:, None] <= bits) & (kl[:, None] <= kl)
    beaten = as_good & ((bits[:, None] < bits) | (kl[:, None] < kl))
    best = np.logical_not(beaten.any(axis=0))
    for i in map(int, np.flatnonzero(best)):
        axes.errorbar(bits[i], kl[i], yerr=errors[i], elinewidth=0.8, capsize=1.5, **look(shown[i].name, line=False))
    axes.plot(bits[~best], kl[~best], linestyle="none", marker=".", markersize=4, color="0.6", zorder=1)
    axes.set(yscale="log", ylabel="mean KL(exact ‖ scheme) (nats per token, ± 2 SE)")
    axes.set_title(f"named: {best.sum()} of {len(shown)} that no other beats at as many bits or fewer", fontsize=7)
    return kl, kl - errors, kl + errors, best
