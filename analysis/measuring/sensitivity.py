"""`sensitivity`: quantize one layer at a time, all others exact, on the same windows; what each layer costs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from kvdelta.analysis.measuring.loop import Failing, bound_schemes, measure_windows, named, stored_places
from kvdelta.analysis.measuring.reconstruction import predicted_sums
from kvdelta.analysis.reading.selection import checked_sides, chosen, spans
from kvdelta.harness.ablation import KeysAndValues, SharedSuffix
from kvdelta.harness.caches.rebuilt import rebuilt
from kvdelta.harness.capture import suffix_gradients
from kvdelta.harness.options import Options
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.scoring import Reference
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import KV, Scheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.maps import one_side


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
    failing = Failing([one.label for one in schemes], on_note)
    ablation = _Ablation([one.scheme for one in schemes], failing, sides, measured, subject, on_note)
    also = {"layers": measured, "sides": sides}
    return measure_windows(
        "sensitivity",
        options,
        subject,
        schemes,
        also,
        measured,
        heads,
        ablation.of_batch,
        failing,
        on_note,
        backward=True,
    )


class _Ablation:
    def __init__(
        self,
        schemes: Sequence[Scheme],
        failing: Failing,
        sides: list[str],
        layers: Sequence[int],
        subject: Subject,
        on_note: Callable[[str], None],
    ):
        self.schemes, self.failing, self.sides = schemes, failing, sides
        self.layers, self.subject, self.on_note = layers, subject, on_note
        self.share: bool | None = None  # asked in the first batch that this process measures, of a continued run too

    def of_batch(self, batch: Batch) -> list[Arrays]:
        model = self.subject.loaded.model
        prefilled = prefill(model, batch.prefix)
        gradients = suffix_gradients(model, batch, prefilled)
        shared = SharedSuffix(model, batch, prefilled)
        exact = shared.held()
        reference = Reference(shared.exact)
        grid = (len(batch), len(self.schemes), len(self.sides))
        by_layers = (*grid, len(self.layers))
        arrays: Arrays = {name: np.full(by_layers, np.nan) for name in ("nll", "kl", "square", "absolute")}
        arrays |= {name: np.full(grid, np.nan) for name in ("all_nll", "all_kl")}
        arrays["exact_nll"] = reference.sums(None, batch.targets)[0].cpu().numpy()
        arrays["count"] = np.full(len(batch), float(batch.targets.shape[1]))
        for i, scheme in enumerate(self.schemes):
            back = self.failing.tried(i, partial(_all_rebuilt, scheme, exact))
            if back is None:
                continue
            if self.share is None:
                self.share = self._shares(shared, back)
            predicted = self._predicted(exact, back, gradients)
            for j, side in enumerate(self.sides):
                started = time.perf_counter()
                half = {layer: _of_side(side, held, back[layer]) for layer, held in exact.items()}
                sums = [reference.sums(shared.replaced(half), batch.targets)]
                for layer in self.layers:
                    logits = shared.ablated(layer, half[layer], self.share)
                    sums.append(reference.sums(logits, batch.targets))
                whole, *by_layer = torch.stack(sums).cpu().numpy()
                arrays["all_nll"][:, i, j], arrays["all_kl"][:, i, j] = whole
                arrays["nll"][:, i, j], arrays["kl"][:, i, j] = np.stack(by_layer, axis=-1)
                arrays["square"][:, i, j], arrays["absolute"][:, i, j] = predicted[side]
                self.on_note(
                    f"{named(batch, self.subject.windows)}  {scheme.name}, {side}: {len(self.layers)} layers in "
                    f"{time.perf_counter() - started:.1f} s"
                )
        return [{name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(len(batch))]

    def _shares(self, shared: SharedSuffix, back: dict[int, KeysAndValues]) -> bool:
        middle = self.layers[len(self.layers) // 2]
        share = shared.shares_exactly(middle, back[middle])
        if not share:
            self.on_note("this model's layers depend on more than the layer below: every pass is computed whole")
        return share

    def _predicted(
        self, exact: dict[int, KeysAndValues], back: dict[int, KeysAndValues], gradients: dict[int, dict[str, KV]]
    ) -> dict[str, Float64[np.ndarray, "2 windows layers"]]:
        """By side: Σ(g·e)² and Σ|g·e| over heads."""
        device, predicted = self.subject.loaded.model.device, {}
        for at, side in enumerate(("key", "value")):
            by_layer = [predicted_sums(gradients[i][side], exact[i][at], back[i][at]) for i in self.layers]
            sums = [[one[name].sum(dim=1).to(device) for one in by_layer] for name in ("square", "absolute")]
            predicted[side] = torch.stack([torch.stack(layers, dim=1) for layers in sums]).cpu().numpy()
        return predicted | {"both": predicted["key"] + predicted["value"]}


def _all_rebuilt(scheme: Scheme, exact: dict[int, KeysAndValues]) -> dict[int, KeysAndValues]:
    return {layer: _rebuilt(scheme, layer, held) for layer, held in exact.items()}


def _rebuilt(scheme: Scheme, layer: int, exact: KeysAndValues) -> KeysAndValues:
    rules = scheme.for_layer(layer)
    return rebuilt(rules.key, exact[0]), rebuilt(rules.value, exact[1])


def _of_side(side: str, exact: KeysAndValues, back: KeysAndValues) -> KeysAndValues:
    return exact[0] if side == "value" else back[0], exact[1] if side == "key" else back[1]
