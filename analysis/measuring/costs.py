"""What candidates of an allocation cost at each place, from a record, and how many bits they take."""

from collections.abc import Sequence

import numpy as np
import torch

from analysis.reading.allocation import SIDES, Costs
from harness.records.measurement import Arrays, Measurement
from schemes import TokenStore, parse_scheme
from schemes.errors import UserError


def bits_of(spec: str, prefix_length: int, channels: int) -> list[float]:
    """Measured bits a number of keys and of values, at the prefix length."""
    found = []
    for side in parse_scheme(spec).sides.values():
        store = TokenStore(side)
        store.append(torch.randn(1, 1, prefix_length, channels, generator=torch.Generator().manual_seed(0)))
        found.append(8 * store.counted_bytes() / store.elements)
    return found


def costs_of(record: Measurement, arrays: Arrays, candidates: Sequence[str] | None, channels: int) -> Costs:
    """From a sensitivity record its ablation KL, from an errors record the predicted loss Σ(g·e)²; summed over windows.

    candidates: None is all schemes of the record. ValueError: a candidate, a side or gradients that are not in it.
    """
    specs = list(candidates) if candidates else [label for label in record.labels if not parse_scheme(label).lossless]
    names = [parse_scheme(spec).identity for spec in specs]
    for spec, name in zip(specs, names, strict=True):
        if name not in record.settings.contenders:
            raise UserError(f"{spec} is not in the {record.kind} record; it has {', '.join(record.labels)}")
    at = [record.settings.contenders.index(name) for name in names]
    if record.kind == "sensitivity":
        there = record.settings.measured["sides"]
        if missing := [side for side in SIDES if side not in there]:
            raise UserError(f"the sensitivity record has no {missing[0]} side; measure it with --side key --side value")
        kl = arrays["kl"].sum(axis=0) / arrays["count"].sum()
        cost = np.stack([kl[at, there.index(side)] for side in SIDES])
        measure = "ablation KL"
    else:
        if "key_square" not in arrays:
            raise UserError("the errors record has no predicted loss; measure it again without --no-gradients")
        cost = np.stack([arrays[f"{side}_square"].sum(axis=(0, 3))[at] for side in SIDES])
        measure = "predicted Σ(g·e)²"
    prefix = record.settings.window_length - record.settings.score_length
    bits = np.array([bits_of(spec, prefix, channels) for spec in specs]).T
    return Costs(specs, record.measured_layers, cost.transpose(2, 0, 1), bits, measure, record.settings.windows)
