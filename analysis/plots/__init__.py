"""Figures, one function each, drawn from records alone. Draw and save them inside `styled()`, which sets the fonts."""

from matplotlib.figure import Figure

from analysis.plots.canvas import save, styled
from analysis.plots.costs import (
    Series,
    allocation,
    bits_against_loss,
    errors_by_layer,
    measure_scatter,
    sensitivity_by_layer,
)
from analysis.plots.outliers import (
    channel_profile,
    heat_maps,
    persistence_by_layer,
    ratio_by_layer,
    surfaces,
    token_norms,
)

__all__ = [
    "Figure",
    "Series",
    "allocation",
    "bits_against_loss",
    "channel_profile",
    "errors_by_layer",
    "heat_maps",
    "measure_scatter",
    "persistence_by_layer",
    "ratio_by_layer",
    "save",
    "sensitivity_by_layer",
    "styled",
    "surfaces",
    "token_norms",
]
