"""`errors`: what each scheme does to keys, values and attention, by layer and KV head, on the suffix's real queries."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvdelta.analysis.measuring.attention import HeadAttention
from kvdelta.analysis.measuring.loop import Failing, bound_schemes, measure_windows, named, stored_places
from kvdelta.analysis.measuring.reconstruction import Sums, predicted_sums, reconstruction_sums
from kvdelta.analysis.reading.selection import chosen
from kvdelta.harness.caches.rebuilt import rebuilt
from kvdelta.harness.capture import Attention, exact_view, suffix_attention, suffix_gradients
from kvdelta.harness.options import Options
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.probing import SPLIT, tokens_for
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import KV, Scheme
from kvdelta.schemes.errors import UserError

AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
"""Logits of attention that are worked on at a time, by device; several copies exist of them."""

SAME_ATTENTION = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative, by round-off of the dtype


def measure_errors(
    specs: Sequence[str],
    options: Options,
    subject: Subject,
    *,
    layers: Sequence[int] | None = None,
    gradients: bool = True,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Measurement, Path]:
    """Sums of errors [schemes, layers, KV heads] for every window. layers: None is all; gradients: also the predicted
    loss, one backward pass a batch.

    ValueError: a scheme or layer that does not fit the model; attention that cannot be captured.
    """
    schemes = bound_schemes(specs, options, subject, on_note)
    full, heads = stored_places(subject)
    measured = chosen("layer", layers, full)
    failing = Failing([one.label for one in schemes], on_note)
    errors = _Errors([one.scheme for one in schemes], failing, subject, measured, len(heads), gradients, on_note)
    errors.rehearse()
    also = {"layers": measured, "gradients": gradients}
    return measure_windows(
        "errors",
        options,
        subject,
        schemes,
        also,
        measured,
        heads,
        errors.of_batch,
        failing,
        on_note,
        backward=gradients,
    )


class _Errors:
    def __init__(
        self,
        schemes: Sequence[Scheme],
        failing: Failing,
        subject: Subject,
        layers: Sequence[int],
        heads: int,
        gradients: bool,
        on_note: Callable[[str], None],
    ):
        self.schemes, self.failing, self.subject, self.layers, self.heads = schemes, failing, subject, layers, heads
        self.gradients, self.on_note = gradients, on_note
        self.checked = False  # a continued measurement checks again: the code may be another

    def rehearse(self) -> None:
        """Refuse on a few tokens, before any whole window, a model whose attention is not that over what it caches."""
        model = self.subject.loaded.model
        few = replace(self.subject.windows[0], tokens=tokens_for(model)[0], prefix_length=SPLIT)
        batch = Batch((few,))
        prefilled = prefill(model, batch.prefix)

        @torch.inference_mode()
        def visit(attention: Attention) -> None:
            held: Any = prefilled.layers[attention.layer]
            for attended, cached in ((attention.keys, held.keys), (attention.values, held.values)):
                if not torch.equal(attended[:, :, : few.prefix_length], cached):
                    raise UserError(
                        f"layer {attention.layer} of {self.subject.loaded.name} attends to other keys and values than those "
                        "that it caches (as multi-head latent attention does), so what an error in these does to its "
                        "attention cannot be measured; use compare, sensitivity or outliers"
                    )
            self._exact(attention, slice(0, 1), check=True)

        suffix_attention(model, exact_view(prefilled, model.config), batch, self.layers, visit)

    def of_batch(self, batch: Batch) -> list[Arrays]:
        started = time.perf_counter()
        model = self.subject.loaded.model
        prefilled = prefill(model, batch.prefix)
        gradients = suffix_gradients(model, batch, prefilled) if self.gradients else {}
        shape = (len(self.schemes), len(self.layers), len(batch), self.heads)
        sums: Sums = {}

        @torch.inference_mode()
        def visit(attention: Attention) -> None:
            at = self.layers.index(attention.layer)
            for windows, i, of_scheme in self._layer(attention, gradients.get(attention.layer)):
                for name, values in of_scheme.items():
                    if name not in sums:
                        sums[name] = torch.full(shape, torch.nan, dtype=torch.float64, device=model.device)
                    sums[name][i, at, windows] = values.to(model.device)

        suffix_attention(model, exact_view(prefilled, model.config), batch, self.layers, visit)
        self.checked = True
        arrays = dict(zip(sums, torch.stack([*sums.values()]).cpu().numpy(), strict=True))
        failed = [i for i, label in enumerate(self.failing.labels) if label in self.failing.reasons]
        for array in arrays.values():
            array[failed] = np.nan  # of the layers before the one that it failed in too
        self.on_note(f"{named(batch, self.subject.windows)}  {time.perf_counter() - started:.1f} s")
        return [{name: array[:, :, i] for name, array in arrays.items()} for i in range(len(batch))]

    def _layer(
        self, attention: Attention, gradients: dict[str, KV] | None
    ) -> Iterator[tuple[slice, int, dict[str, Tensor]]]:
        """Sums of one layer, [windows, KV heads]: which windows they are of, and the position of their scheme."""
        exact = {"key": attention.keys, "value": attention.values}
        suffix = attention.queries.shape[2]
        prefix = {side: x[:, :, :-suffix] for side, x in exact.items()}
        back = [
            self.failing.tried(i, partial(_decoded, scheme, attention.layer, prefix))
            for i, scheme in enumerate(self.schemes)
        ]
        for windows in _few(attention):
            unchanged = self._exact(attention, windows, check=not self.checked)
            for i, decoded in enumerate(back):
                if decoded is None:
                    continue
                sums: Sums = {}
                for side, x in prefix.items():
                    mine = reconstruction_sums(x[windows], decoded[side][windows])
                    if gradients:
                        mine |= predicted_sums(gradients[side][windows], x[windows], decoded[side][windows])
                    sums |= {f"{side}_{name}": values for name, values in mine.items()}
                keys, values = (
                    torch.cat([decoded[side][windows], x[windows, :, -suffix:]], dim=2).float()
                    for side, x in exact.items()
                )
                yield windows, i, sums | unchanged.sums(keys, values)

    def _exact(self, attention: Attention, windows: slice, check: bool) -> HeadAttention:
        queries, keys, values = (x[windows].float() for x in (attention.queries, attention.keys, attention.values))
        heads = keys.shape[1]
        exact = HeadAttention(
            queries.unflatten(1, (heads, -1)), keys, values, attention.allowed, attention.scaling, attention.softcap
        )
        if check:
            ours = exact.output.flatten(1, 2).transpose(1, 2)
            theirs = attention.output[windows].float()
            off = float((ours - theirs).norm() / theirs.norm())
            if not off <= SAME_ATTENTION[attention.output.dtype]:
                raise UserError(
                    f"layer {attention.layer} of {self.subject.loaded.name} attends in a way that its queries, keys, mask "
                    f"and scaling do not give again (outputs differ by {off:.1e}); its attention cannot be captured"
                )
        return exact


def _decoded(scheme: Scheme, layer: int, prefix: dict[str, Tensor]) -> dict[str, Tensor]:
    return {side: rebuilt(rule, prefix[side]) for side, rule in scheme.for_layer(layer).sides.items()}


def _few(attention: Attention) -> Iterator[slice]:
    """The windows that are worked on at a time."""
    windows, heads, suffix, _ = attention.queries.shape
    most = AT_ONCE.get(attention.queries.device.type, AT_ONCE["cpu"])
    size = max(1, most // (heads * suffix * attention.keys.shape[2]))
    for first in range(0, windows, size):
        yield slice(first, min(first + size, windows))
