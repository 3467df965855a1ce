"""Figures of a grid: the loss of every scheme from cell to cell, and KL against depth."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from kvdelta.analysis.plots.canvas import grid_figure, ink, scheme_legend, settle, tidy_log
from kvdelta.analysis.plots.points import MANY
from kvdelta.analysis.plots.style import look
from kvdelta.analysis.reading.carry_rows import OrderRow
from kvdelta.analysis.reading.depths import DepthRow

KL = "KL"
LINE = 90  # characters of a line of cells' names that fit side by side
NARROW = 9  # characters a line of a cell's name; where more cells leave less, names are tilted


def loss_by_cell(rows: Sequence[OrderRow], loss: str, title: str) -> Figure:
    """A line a scheme over the cells, with 95 % intervals; of many schemes those on the front in every cell, the others grey and
    without a name. loss: what it is, ΔNLL or KL, for the axis. What has no figures in a cell has a gap there."""
    cells = list(dict.fromkeys(row.cell for row in rows))
    lines = {name: [row for row in rows if row.name == name] for name in dict.fromkeys(row.name for row in rows)}
    named = [name for name, line in lines.items() if len(lines) <= MANY or line[0].front]
    width = LINE // len(cells)
    tilted = width < NARROW
    ends = np.array([(row.loss, row.loss if loss == KL else row.loss_low) for row in rows], dtype=float)
    positive = bool(np.nanmin(ends) > 0)
    shown = cells if tilted else ["\n".join(fill(part, width) for part in cell.split(", ")) for cell in cells]
    figure, panels = grid_figure(title, 1, 1, 3.3 + 0.5 * tilted + 0.1 * max(name.count("\n") for name in shown))
    axes = panels[0, 0]
    for name in (name for name in lines if name not in named):
        axes.plot(range(len(cells)), [row.loss for row in lines[name]], color="0.8", linewidth=0.6, zorder=1)
    for turn, name in enumerate(named):
        x = np.arange(len(cells)) + 0.3 * (turn - (len(named) - 1) / 2) / len(named)  # whiskers beside each other
        y, low, high = np.array([(row.loss, row.loss_low, row.loss_high) for row in lines[name]], dtype=float).T
        low = np.where(low > 0, low, y / 3) if positive else low  # cut: a log axis has no 0
        style = look(name)
        axes.plot(x, y, **style)
        axes.vlines(x, low, high, color=style["color"], linewidth=0.6, alpha=0.7)
    axes.set_xticks(range(len(cells)), shown, rotation=25 if tilted else 0, ha="right" if tilted else "center")
    axes.margins(x=0.05)
    if not positive:
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(bottom=min(-2e-3, 1.5 * float(np.nanmin(ends))))
        axes.axhline(0, color=ink(), linewidth=0.6, zorder=1)
        axes.set_ylabel(f"{loss} (nats per token;\nlinear between ±0.001)")
    else:
        axes.set(yscale="log", ylabel=f"{loss} (nats per token)")
    tidy_log(axes.yaxis)
    scheme_legend(figure, panels, 1, named)
    settle(figure)
    return figure


def kl_by_depth(rows: Sequence[Sequence[DepthRow]], title: str) -> Figure:
    """A panel a group of cells, a line a scheme: KL with its interval over windows against the tokens of the prefix."""
    groups = list(dict.fromkeys(line[0].group for line in rows))
    columns = min(len(groups), 2)
    figure, panels = grid_figure(title, -(-len(groups) // columns), columns, 2.6 + 0.07 * len(rows) / len(groups))
    for axes, group in zip(panels.flat, groups, strict=False):
        own = [line for line in rows if line[0].group == group]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for turn, line in enumerate(own):
            aside = 2 ** (0.16 * (turn - (len(own) - 1) / 2) / len(own))
            x = np.array([row.prefix for row in line]) * aside
            y, low, high = np.array([(row.kl, row.kl_low, row.kl_high) for row in line]).T
            style = look(line[0].name)
            axes.plot(x, np.where(y > 0, y, np.nan), **style)
            axes.vlines(x, np.where(low > 0, low, y / 3), high, color=style["color"], linewidth=0.6, alpha=0.7)
        depths = sorted({row.prefix for line in own for row in line})
        axes.set_xticks(depths, [f"{depth // 1024}K" if depth % 1024 == 0 else str(depth) for depth in depths])
        axes.minorticks_off()
        axes.set_title(group, fontsize=7)
        axes.set_xlabel("tokens of the prefix")
    ends = np.array([axes.get_ylim() for axes in panels.flat[: len(groups)]])
    for axes in panels.flat[: len(groups)]:
        axes.set_ylim(ends.min(), ends.max())  # panels compare
        tidy_log(axes.yaxis)
    for axes in panels[:, 0]:
        axes.set_ylabel("KL (nats per token)")
    scheme_legend(figure, panels, len(groups), [line[0].name for line in rows])
    settle(figure)
    return figure
