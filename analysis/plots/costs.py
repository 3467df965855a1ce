"""Figures of a bench: what each cache costs, and how that grows with the tokens in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kvdelta.analysis.plots.canvas import blank, legend, settle, tidy_log
from kvdelta.analysis.plots.style import look
from kvdelta.analysis.reading.costs import CostRow, StepRow
from kvdelta.harness.records.bench import AGAIN


def cost_by_scheme(rows: Sequence[CostRow], title: str) -> Figure:
    """Fill and suffix of a window, stacked, a bar a cache; the least context of the bench."""
    context = min(row.context for row in rows)
    shown = sorted(
        (row for row in rows if row.context == context and row.name != AGAIN),
        key=lambda row: row.fill_ms + row.suffix_ms,
    )
    figure = blank(f"{title}\n{context} tokens in the cache", 1.5 + 0.2 * len(shown))
    axes = figure.subplots()
    axes.margins(x=0.02)
    at = np.arange(len(shown))
    fill, suffix = (np.array([getattr(row, name) for row in shown]) for name in ("fill_ms", "suffix_ms"))
    bars = [
        axes.barh(at, suffix, color="#004488", label="suffix, which reads"),
        axes.barh(at, fill, left=suffix, color="#DDAA33", label="fill, which stores"),
    ]
    axes.set_yticks(at, [row.name for row in shown])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms a window")
    legend(figure, bars)
    settle(figure)
    return figure


def cost_by_context(rows: Sequence[CostRow] | Sequence[StepRow], contenders: Mapping[str, str], title: str) -> Figure:
    """A line a cache: fill and suffix, or a step, against the tokens in the cache. contenders: canonical names by label."""
    drawn = [row for row in rows if row.name != AGAIN]
    steps = any(isinstance(row, StepRow) for row in drawn)
    figure = blank(title, 3.8)
    axes = figure.subplots()
    lines = []
    for name in dict.fromkeys(row.name for row in drawn):
        own = [row for row in drawn if row.name == name]
        cost = [row.step_ms if isinstance(row, StepRow) else row.fill_ms + row.suffix_ms for row in own]
        lines += axes.plot([row.context for row in own], cost, label=name, **_look(name, contenders))
    axes.set(
        xscale="log", yscale="log", xlabel="tokens in the cache",
        ylabel="ms a step" if steps else "ms a window, fill and suffix",
    )  # fmt: skip
    contexts = sorted({row.context for row in drawn})
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.minorticks_off()
    tidy_log(axes.yaxis)
    legend(figure, lines)
    settle(figure)
    return figure


def _look(name: str, contenders: Mapping[str, str]) -> dict[str, Any]:
    """Of the scheme; mirrored, hollow."""
    label, _, kind = name.partition(", ")
    return look(contenders.get(label, label)) | ({"markerfacecolor": "none", "linewidth": 0.6} if kind else {})
