"""`sensitivity`: quantize one layer at a time, all others exact, on the same windows; what each layer costs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.measuring.loop import bound_schemes, measure_windows, stored_places
from analysis.measuring.reconstruction import predicted_sums
from analysis.reading.selection import checked_sides, chosen, spans
from harness.ablation import SharedSuffix
from harness.caches.scheme import SchemeCache
from harness.capture import suffix_gradients
from harness.options import Options
from harness.protocols import prefill, suffix_logits
from harness.records.measurement import Arrays, Measurement
from harness.scoring import Reference
from harness.subject.prepared import Subject
from harness.subject.windows import Window
from schemes import Scheme, TokenStore
from schemes.errors import UserError
from schemes.maps import one_side


def measure_sensitivity(
    specs: Sequence[str],
    options: Options,
    subject: Subject,
    *,
    sides: Sequence[str] = ("key", "value"),
    layers: Sequence[int] | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Measurement, Path]:
    """Loss and KL sums [schemes, sides, layers] of every window, one layer quantized; beside them with all layers
    quantized [schemes, sides], the exact loss, and the loss predicted from one backward pass.

    sides: "key", "value" or "both" (of one layer at once). ValueError: a scheme, side or layer that does not fit.
    """
    sides = checked_sides(sides)
    schemes = bound_schemes(specs, options, subject, on_note)
    full, heads = stored_places(subject)
    measured = chosen("layer", layers, full)
    for one in schemes:
        for side in sides:
            if exact := [layer for layer in measured if one_side(one.scheme.for_layer(layer), side).lossless]:
                what = {"key": "keys", "value": "values", "both": "keys and values"}[side]
                raise UserError(
                    f"scheme {one.label} keeps {what} of layers {spans(exact)} exact, so there is nothing to measure; "
                    "leave them out with --layers, or name another --side or scheme"
                )
    ablation = _Ablation([one.scheme for one in schemes], sides, measured, subject, on_note)
    also = {"layers": measured, "sides": sides}
    return measure_windows("sensitivity", options, subject, schemes, also, measured, heads, ablation.of_window, on_note)


class _Ablation:
    def __init__(
        self,
        schemes: Sequence[Scheme],
        sides: list[str],
        layers: Sequence[int],
        subject: Subject,
        on_note: Callable[[str], None],
    ):
        self.schemes, self.sides, self.layers, self.subject, self.on_note = schemes, sides, layers, subject, on_note
        self.share: bool | None = None  # asked in the first window that this process measures, of a continued run too

    def of_window(self, window: Window) -> Arrays:
        model = self.subject.loaded.model
        position = self.subject.windows.index(window) + 1
        prefilled = prefill(model, window.prefix)
        gradients = suffix_gradients(model, window, prefilled)
        shared = SharedSuffix(model, window, prefilled)
        if self.share is None:
            middle = self.layers[len(self.layers) // 2]
            self.share = shared.shares_exactly(middle, self.schemes[0].for_layer(middle))
            if not self.share:
                self.on_note("this model's layers depend on more than the layer below: every pass is computed whole")
        reference, targets = Reference(shared.exact), window.targets[None]
        exact = reference.itself(targets)
        grid = (len(self.schemes), len(self.sides))
        arrays: Arrays = {name: np.zeros((*grid, len(self.layers))) for name in ("nll", "kl", "square", "absolute")}
        arrays |= {name: np.zeros(grid) for name in ("all_nll", "all_kl")}
        arrays |= {"exact_nll": _sum(exact.nll), "count": np.array(float(len(window.targets)))}
        for i, scheme in enumerate(self.schemes):
            predicted = self._predicted(scheme, prefilled, gradients)
            for j, side in enumerate(self.sides):
                started = time.perf_counter()
                half = one_side(scheme, side)
                whole = suffix_logits(model, SchemeCache.for_model(half, model).fill(prefilled), window.suffix)
                scores = reference.score(whole, targets)
                arrays["all_nll"][i, j], arrays["all_kl"][i, j] = _sum(scores.nll), _sum(scores.kl)
                for at, layer in enumerate(self.layers):
                    logits = shared.ablated(layer, half.for_layer(layer), self.share)
                    scores = reference.score(logits, targets)
                    arrays["nll"][i, j, at], arrays["kl"][i, j, at] = _sum(scores.nll), _sum(scores.kl)
                    for name in ("square", "absolute"):
                        arrays[name][i, j, at] = predicted[layer][side][name]
                seconds = time.perf_counter() - started
                self.on_note(
                    f"window {position}/{len(self.subject.windows)}  {scheme.name}, {side}: {len(self.layers)} layers "
                    f"in {seconds:.1f} s"
                )
        return arrays

    def _predicted(self, scheme: Scheme, prefilled: Any, gradients: dict) -> dict[int, dict[str, dict[str, float]]]:
        """By layer and side: Σ(g·e)² and Σ|g·e| over heads."""
        predicted: dict[int, dict[str, dict[str, float]]] = {}
        for layer in self.layers:
            held: Any = prefilled.layers[layer]
            by_side: dict[str, dict[str, float]] = {}
            for side, x in {"key": held.keys, "value": held.values}.items():
                store = TokenStore(scheme.for_layer(layer).sides[side])
                store.append(x)
                decoded = store.read()
                assert decoded is not None
                sums = predicted_sums(gradients[layer][side][0], x[0], decoded[0])
                by_side[side] = {name: float(array.sum()) for name, array in sums.items()}
            by_side["both"] = {name: by_side["key"][name] + by_side["value"][name] for name in by_side["key"]}
            predicted[layer] = by_side
        return predicted


def _sum(x: torch.Tensor) -> np.ndarray:
    return np.array(float(x.double().sum()))
