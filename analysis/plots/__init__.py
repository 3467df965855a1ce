"""Figures, one function each, drawn from records alone. Draw and save them inside `styled()`, which sets the fonts."""

from matplotlib.figure import Figure

from kvdelta.analysis.plots.canvas import save, styled
from kvdelta.analysis.plots.channels import channel_profile, persistence_by_layer, ratio_by_layer, token_norms
from kvdelta.analysis.plots.costs import cost_by_context, cost_by_scheme
from kvdelta.analysis.plots.grids import kl_by_depth, loss_by_cell
from kvdelta.analysis.plots.layers import bits_by_layer, errors_by_layer, sensitivity_by_layer
from kvdelta.analysis.plots.pictures import heat_maps, surfaces
from kvdelta.analysis.plots.points import Series, bits_against_loss, has_point, measure_scatter
from kvdelta.analysis.plots.replays import replay_figure

__all__ = [
    "Figure",
    "Series",
    "bits_against_loss",
    "bits_by_layer",
    "channel_profile",
    "cost_by_context",
    "cost_by_scheme",
    "errors_by_layer",
    "has_point",
    "heat_maps",
    "kl_by_depth",
    "loss_by_cell",
    "measure_scatter",
    "persistence_by_layer",
    "ratio_by_layer",
    "replay_figure",
    "save",
    "sensitivity_by_layer",
    "styled",
    "surfaces",
    "token_norms",
]
