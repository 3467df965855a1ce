"""The screen of a race: the loss of each candidate, predicted by one backward pass through the exact model, without a forward of
its own."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from analysis.measuring.reconstruction import predicted_sums
from harness.caches.contenders import SchemeContender
from harness.caches.rebuilt import rebuilt
from harness.capture import suffix_gradients
from harness.protocols import prefill
from harness.subject.prepared import Subject
from harness.subject.windows import Batch


def predicted_losses(
    specs: Sequence[str], subjects: Sequence[Subject], on_note: Callable[[str], None] = lambda text: None
) -> Float64[np.ndarray, "schemes models"]:
    """½ Σ(g·e)² a scored token, over all layers, K and V, and the windows of each subject: g the gradient of the exact suffix's NLL
    by a stored number, e what the scheme changes in it. To second order, and with errors that do not know of each other, the KL
    in nats of two passes (a diagonal Fisher estimate)."""
    found = np.zeros((len(specs), len(subjects)))
    for m, subject in enumerate(subjects):
        model = subject.loaded.model
        schemes = [SchemeContender.of(spec).empty(model).scheme for spec in specs]
        tokens = 0
        for number, window in enumerate(subject.windows, 1):
            on_note(f"predicting what {len(specs)} candidates lose, window {number} of {len(subject.windows)}")
            batch = Batch((window,))
            prefilled = prefill(model, batch.prefix)
            gradients = suffix_gradients(model, batch, prefilled)
            tokens += batch.targets.numel()
            with torch.inference_mode():
                for s, scheme in enumerate(schemes):
                    found[s, m] += _squares(scheme, prefilled, gradients)
        found[:, m] /= 2 * tokens
    return found


def _squares(scheme, prefilled, gradients: dict[int, dict[str, Tensor]]) -> float:
    total: list[Tensor] = []
    for layer, gradient in gradients.items():
        held = prefilled.layers[layer]
        for side, rule in scheme.for_layer(layer).sides.items():
            x = held.keys if side == "key" else held.values
            total.append(predicted_sums(gradient[side], x, rebuilt(rule, x))["square"].sum())
    return float(torch.stack(total).sum())
