"""Rows of an ablation: what quantizing one layer at a time costs, and whether the costs add up."""

from dataclasses import dataclass, replace
from math import nan

import numpy as np

from kvdelta.analysis.reading.rows import Row
from kvdelta.harness import statistics
from kvdelta.harness.records.measurement import Arrays, Measurement

UNREAD = "cache not read"


@dataclass(frozen=True)
class AblationRow(Row):
    """What quantizing one layer costs: ΔNLL with its 95 % interval over windows (nan for one window) and mean KL, nats a
    token; square, absolute: the predicted loss, summed over windows. read: whether any logit moved."""

    scheme: str
    side: str
    layer: int
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    kl: float
    kl_se: float
    square: float
    absolute: float
    read: bool

    @property
    def place(self) -> str:
        return f"{self.scheme} {self.side} of layer {self.layer}"

    def without_costs(self) -> "AblationRow":
        """For figures, of a row that cannot be believed: nan is not drawn."""
        return replace(self, delta_nll=nan, delta_nll_low=nan, delta_nll_high=nan, kl=nan, kl_se=nan)


@dataclass(frozen=True)
class AdditivityRow(Row):
    """The single-layer costs of a scheme's side summed, those of all layers at once, and the difference of the ΔNLL with
    its 95 % interval over windows; nats a token."""

    scheme: str
    side: str
    sum_delta_nll: float
    all_delta_nll: float
    difference: float
    difference_low: float
    difference_high: float
    sum_kl: float
    all_kl: float


def layer_rows(record: Measurement, arrays: Arrays) -> list[AblationRow]:
    """One row a scheme, side and layer."""
    rows, sound = [], record.settings.independent
    for i, j, at in np.ndindex(arrays["nll"].shape[1:]):
        delta = statistics.paired_delta(
            arrays["nll"][:, i, j, at], arrays["exact_nll"], arrays["count"], independent=sound
        )
        kl, kl_se = statistics.clustered_mean(arrays["kl"][:, i, j, at], arrays["count"], independent=sound)
        rows.append(
            AblationRow(
                scheme=record.labels[i],
                side=record.settings.measured["sides"][j],
                layer=record.measured_layers[at],
                delta_nll=delta.delta,
                delta_nll_low=delta.low,
                delta_nll_high=delta.high,
                kl=kl,
                kl_se=kl_se,
                square=float(arrays["square"][:, i, j, at].sum()),
                absolute=float(arrays["absolute"][:, i, j, at].sum()),
                read=bool((arrays["kl"][:, i, j, at] > 0).any()),
            )
        )
    return rows


def additivity_rows(record: Measurement, arrays: Arrays) -> list[AdditivityRow]:
    """One row a scheme and side."""
    rows = []
    count = arrays["count"]
    for i, j in np.ndindex(arrays["all_nll"].shape[1:]):
        exact = arrays["exact_nll"]
        single = (arrays["nll"][:, i, j] - exact[:, None]).sum(axis=1)
        together = arrays["all_nll"][:, i, j] - exact
        difference = statistics.paired_delta(single, together, count, independent=record.settings.independent)
        rows.append(
            AdditivityRow(
                scheme=record.labels[i],
                side=record.settings.measured["sides"][j],
                sum_delta_nll=float(single.sum() / count.sum()),
                all_delta_nll=float(together.sum() / count.sum()),
                difference=difference.delta,
                difference_low=difference.low,
                difference_high=difference.high,
                sum_kl=float(arrays["kl"][:, i, j].sum() / count.sum()),
                all_kl=float(arrays["all_kl"][:, i, j].sum() / count.sum()),
            )
        )
    return rows
