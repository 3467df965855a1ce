"""Figures over a model's layers: errors, what one quantized layer costs, and bits."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import special

from kvdelta.analysis.plots.canvas import (
    grid_figure,
    ink,
    log_floor,
    panel_figure,
    scheme_legend,
    scheme_line,
    tidy_log,
)
from kvdelta.analysis.plots.style import SIDE_LOOKS, SIDE_NAMES, with_unit
from kvdelta.analysis.reading import ablations
from kvdelta.analysis.reading.error_measures import MEASURES, by_layer
from kvdelta.analysis.reading.rows import left_out
from kvdelta.harness.records.measurement import Arrays, Measurement


def errors_by_layer(
    record: Measurement,
    arrays: Arrays,
    measures: Sequence[str] = ("key_error", "value_error", "attention_kl", "output_both"),
) -> Figure:
    """One panel a measure: the error of each scheme by layer, over all windows and heads."""
    rows = -(-len(measures) // 2)
    figure, panels = panel_figure(record, "Error of each scheme by layer", rows, min(2, len(measures)), 2.2)
    errors = by_layer(arrays)
    for axes, name in zip(panels.flat, measures, strict=False):
        floor = log_floor(axes, errors[name])
        for i, scheme in enumerate(record.settings.contenders):
            scheme_line(
                axes, record.measured_layers, errors[name][i], scheme, i, len(record.settings.contenders), floor=floor
            )
        axes.set(xlabel="layer (index)", ylabel=with_unit(MEASURES[name].label))
        tidy_log(axes.yaxis)
    scheme_legend(figure, panels, len(measures), record.settings.contenders)
    return figure


def sensitivity_by_layer(record: Measurement, arrays: Arrays) -> Figure:
    """A row a side: mean KL and ΔNLL of quantizing one layer alone, with 95 % intervals over windows."""
    sides, windows = record.settings.measured["sides"], len(record.settings.windows)
    names = dict(zip(record.labels, record.settings.contenders, strict=True))
    ablated = ablations.layer_rows(record, arrays)
    whiskers = "; whiskers: 95 % interval over windows" if windows > 1 else ""
    unread = left_out({row.place: ablations.UNREAD for row in ablated if not row.read})
    what = "\n".join(filter(None, [f"What one quantized layer costs{whiskers}", unread]))
    figure, panels = panel_figure(record, what, len(sides), 2, 2.4)
    t = float(special.stdtrit(windows - 1, 0.975)) if windows > 1 else np.nan
    for (divergence, loss), side in zip(panels, sides, strict=True):
        at_side = [row for row in ablated if row.side == side]
        floor = log_floor(divergence, np.array([row.kl for row in at_side if row.read]))
        for turn, (label, name) in enumerate(names.items()):
            rows = [row if row.read else row.without_costs() for row in at_side if row.scheme == label]
            kl, half = np.array([row.kl for row in rows]), t * np.array([row.kl_se for row in rows])
            scheme_line(
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
            low, high = np.array([(row.delta_nll_low, row.delta_nll_high) for row in rows]).T
            scheme_line(
                loss,
                record.measured_layers,
                np.array([row.delta_nll for row in rows]),
                name,
                turn,
                len(names),
                low=low,
                high=high,
            )
        tidy_log(divergence.yaxis)
        loss.axhline(0, color=ink(), linewidth=0.6, zorder=1)
        for axes, ylabel in ((divergence, "mean KL (nats per token)"), (loss, "ΔNLL (nats per token)")):
            axes.set(title=f"{SIDE_NAMES[side]} quantized", xlabel="layer (index)", ylabel=ylabel)
    scheme_legend(figure, panels, panels.size, list(names.values()))
    return figure


def bits_by_layer(bits_by_side: dict[str, dict[int, float]], title: str) -> Figure:
    """Measured bits of each layer, a bar for each side."""
    figure, panels = grid_figure(title, 1, 1, 2.5)
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
