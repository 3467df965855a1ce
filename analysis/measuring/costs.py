"""What candidates of an allocation cost at each place, from a record, and how many bits they take there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64

from kvdelta.analysis.measuring.loop import Failing
from kvdelta.analysis.reading.allocation import SIDES, Costs
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.subject.prepared import Subject
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True, eq=False)
class Sizes:
    """Of a prefix's keys and values: measured bits a number [layers, 2, candidates], and how many numbers [layers, 2]."""

    bits: Float64[np.ndarray, "layers 2 candidates"]
    numbers: Float64[np.ndarray, "layers 2"]


def sizes_of(failing: Failing, subject: Subject) -> tuple[list[str], Sizes]:
    """Of each candidate in the model's own cache, filled with the first window's prefix: with all its heads and
    channels, and what it is calibrated with. Without those that have failed, or fail here; which are left."""
    model = subject.loaded.model
    prefilled = prefill(model, subject.windows[0].prefix)
    left, bits, numbers = [], [], []
    for i, spec in enumerate(failing.labels):
        cache = failing.tried(i, partial(_filled, spec, model, prefilled))
        if cache is None:
            continue
        left.append(spec)
        held = {(layer, side): store for layer, side, store in cache.stores()}
        stores = [[held[layer, side] for side in SIDES] for layer in cache.quantized_layers]
        bits.append([[8 * store.counted_bytes() / store.elements for store in layer] for layer in stores])
        numbers = [[store.elements for store in layer] for layer in stores]
    return left, Sizes(np.array(bits, dtype=float).transpose(1, 2, 0), np.array(numbers, dtype=float))


def _filled(spec: str, model: Any, prefilled: Any) -> SchemeCache:
    return SchemeContender.of(spec).empty(model).fill(prefilled)


def candidates_of(record: Measurement, specs: Sequence[str] | None) -> list[str]:
    """Each scheme once; None is all of the record that quantize. ValueError for one that is not in the record."""
    given = list(specs) if specs else [label for label in record.labels if not parse_scheme(label).lossless]
    by_identity = {parse_scheme(spec).identity: spec for spec in reversed(given)}
    for identity, spec in by_identity.items():
        if identity not in record.settings.contenders:
            raise UserError(f"{spec} is not in the {record.kind} record; it has {', '.join(record.labels)}")
    return list(by_identity.values())[::-1]


def costs_of(record: Measurement, arrays: Arrays, candidates: Sequence[str], sizes: Sizes) -> Costs:
    """From a sensitivity record its ablation KL, from an errors record the predicted loss Σ(g·e)²; summed over windows.

    ValueError: sides or gradients that are not in the record.
    """
    at = [record.settings.contenders.index(parse_scheme(spec).identity) for spec in candidates]
    if record.kind == "sensitivity":
        sides = record.settings.measured["sides"]
        if missing := [side for side in SIDES if side not in sides]:
            raise UserError(f"the sensitivity record has no {missing[0]} side; measure it with --side key --side value")
        kl = arrays["kl"].sum(axis=0) / arrays["count"].sum()
        cost = np.stack([kl[at, sides.index(side)] for side in SIDES])
        measure = "ablation KL"
    else:
        if "key_square" not in arrays:
            raise UserError("the errors record has no predicted loss; measure it again without --no-gradients")
        cost = np.stack([arrays[f"{side}_square"].sum(axis=(0, 3))[at] for side in SIDES])
        measure = "predicted Σ(g·e)²"
    by_place = cost.transpose(2, 0, 1)
    return Costs(list(candidates), record.measured_layers, by_place, sizes.bits, sizes.numbers, measure)
