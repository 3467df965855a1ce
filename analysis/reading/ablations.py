"""Rows of an ablation: what quantizing one layer at a time costs, and whether the costs add up."""

from typing import Any

import numpy as np

from harness import statistics
from harness.records.measurement import Arrays, Measurement

Row = dict[str, Any]


def layer_rows(record: Measurement, arrays: Arrays) -> list[Row]:
    """One row a scheme, side and layer: ΔNLL and mean KL with 95 % intervals over windows (nan for one window), and
    the predicted loss, summed over windows."""
    rows: list[Row] = []
    for i, j, at in np.ndindex(arrays["nll"].shape[1:]):
        delta = statistics.paired_delta(arrays["nll"][:, i, j, at], arrays["exact_nll"], arrays["count"])
        kl, kl_se = statistics.clustered_mean(arrays["kl"][:, i, j, at], arrays["count"])
        rows.append(
            {
                "scheme": record.labels[i],
                "side": record.settings.measured["sides"][j],
                "layer": record.measured_layers[at],
                "delta_nll": delta.delta,
                "delta_nll_low": delta.low,
                "delta_nll_high": delta.high,
                "kl": kl,
                "kl_se": kl_se,
                "square": float(arrays["square"][:, i, j, at].sum()),
                "absolute": float(arrays["absolute"][:, i, j, at].sum()),
                "read": bool((arrays["kl"][:, i, j, at] > 0).any()),
            }
        )
    return rows


def additivity_rows(record: Measurement, arrays: Arrays) -> list[Row]:
    """One row a scheme and side: Σ over layers of the single-layer ΔNLL and KL, those of all layers at once, and the
    difference of the ΔNLL with its 95 % interval over windows."""
    rows: list[Row] = []
    count = arrays["count"]
    for i, j in np.ndindex(arrays["all_nll"].shape[1:]):
        exact = arrays["exact_nll"]
        single = (arrays["nll"][:, i, j] - exact[:, None]).sum(axis=1)
        together = arrays["all_nll"][:, i, j] - exact
        difference = statistics.paired_delta(single, together, count)
        rows.append(
            {
                "scheme": record.labels[i],
                "side": record.settings.measured["sides"][j],
                "sum_delta_nll": float(single.sum() / count.sum()),
                "all_delta_nll": float(together.sum() / count.sum()),
                "difference": difference.delta,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "sum_kl": float(arrays["kl"][:, i, j].sum() / count.sum()),
                "all_kl": float(arrays["all_kl"][:, i, j].sum() / count.sum()),
            }
        )
    return rows
