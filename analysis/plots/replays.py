"""Figures of a replay: does the error grow along the text, and how long do coupled samples agree?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kvdelta.analysis.plots.canvas import grid_figure, log_floor, scheme_legend, settle, tidy_log
from kvdelta.analysis.plots.style import look
from kvdelta.analysis.reading.replays import PositionRow
from kvdelta.harness.records.replay import Replay


def replay_figure(replay: Replay, rows: Sequence[PositionRow], title: str) -> Figure:
    """KL by bin of positions with its interval over prompts, and the share of coupled samples that still agree. rows: by
    bin. Exact, and what cannot be believed, is left out."""
    shown = {row.scheme: row.name for row in rows if not row.refused and row.kl > 0}
    figure, panels = grid_figure(title, 1, 2, 2.6)
    left, right = panels[0]
    _by_position(left, replay, [row for row in rows if row.scheme in shown], list(shown))
    _agreement(right, replay, list(shown))
    for axes in (left, right):
        axes.set_xlabel("tokens written after the prompt")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    scheme_legend(figure, panels, 2, list(shown.values()))
    settle(figure)
    return figure


def _by_position(axes: Axes, replay: Replay, rows: Sequence[PositionRow], schemes: Sequence[str]) -> None:
    log_floor(axes, np.array([row.kl for row in rows]))
    width = replay.edges[0]
    for turn, scheme in enumerate(schemes):
        own = [row for row in rows if row.scheme == scheme]
        aside = 0.4 * width * (turn - (len(schemes) - 1) / 2) / len(schemes)  # whiskers beside each other
        x = np.array([(row.first + row.last) / 2 + aside for row in own])
        y, low, high = np.array([(row.kl, row.kl_low, row.kl_high) for row in own]).T
        style = look(own[0].name)
        axes.plot(x, y, **style)
        axes.vlines(x, np.where(low > 0, low, y / 3), high, color=style["color"], linewidth=0.6, alpha=0.7)
    axes.set_ylabel("KL(exact ‖ scheme) (nats per token)")
    axes.set_title("KL by position, 95 % over prompts")
    tidy_log(axes.yaxis)


def _agreement(axes: Axes, replay: Replay, schemes: Sequence[str]) -> None:
    x = np.array([0, *replay.grid])
    for row in replay.rows:
        if row.label in schemes:
            every = max(1, len(x) // 8)
            axes.plot(x, [1.0, *row.agree], markevery=every, **look(row.name))
    axes.axhline(0.5, color="0.6", linewidth=0.6, zorder=1)
    axes.set(ylim=(0, 1.02), ylabel="S(t) = Π(1 − TVD)")
    axes.set_title("share of coupled samples that still agree")
