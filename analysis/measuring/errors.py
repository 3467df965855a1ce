"""`errors`: what each scheme does to keys, values and attention, by layer and KV head, on the suffix's real queries."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.measuring.attention import HeadAttention
from analysis.measuring.loop import bound_schemes, measure_windows, stored_places
from analysis.measuring.reconstruction import predicted_sums, reconstruction_sums
from analysis.reading.selection import chosen
from harness.capture import Attention, exact_view, suffix_attention, suffix_gradients
from harness.options import Options
from harness.protocols import prefill
from harness.records.measurement import Arrays, Measurement
from harness.subject.prepared import Subject
from harness.subject.probing import SPLIT, tokens_for
from harness.subject.windows import Window
from schemes import Scheme, TokenStore
from schemes.errors import UserError

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
    loss, one backward pass a window.

    ValueError: a scheme or layer that does not fit the model; attention that cannot be captured.
    """
    schemes = bound_schemes(specs, options, subject, on_note)
    full, heads = stored_places(subject)
    measured = chosen("layer", layers, full)
    errors = _Errors([one.scheme for one in schemes], subject, measured, len(heads), gradients, on_note)
    errors.rehearse()
    also = {"layers": measured, "gradients": gradients}
    return measure_windows("errors", options, subject, schemes, also, measured, heads, errors.of_window, on_note)


class _Errors:
    def __init__(
        self,
        schemes: Sequence[Scheme],
        subject: Subject,
        layers: Sequence[int],
        heads: int,
        gradients: bool,
        on_note: Callable[[str], None],
    ):
        self.schemes, self.subject, self.layers, self.heads = schemes, subject, layers, heads
        self.gradients, self.on_note = gradients, on_note
        self.checked = False  # a continued measurement checks again: the code may be another

    def rehearse(self) -> None:
        """Refuse on a few tokens, before any whole window, a model whose attention is not that over what it caches."""
        model = self.subject.loaded.model
        few = replace(self.subject.windows[0], tokens=tokens_for(model)[0], prefix_length=SPLIT)
        prefilled = prefill(model, few.prefix)

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
            self._exact(attention, check=True)

        suffix_attention(model, exact_view(prefilled, model.config), few, self.layers, visit)

    def of_window(self, window: Window) -> Arrays:
        started = time.perf_counter()
        model = self.subject.loaded.model
        prefilled = prefill(model, window.prefix)
        gradients = suffix_gradients(model, window, prefilled) if self.gradients else {}
        arrays: Arrays = {}

        @torch.inference_mode()
        def visit(attention: Attention) -> None:
            at = self.layers.index(attention.layer)
            heads = self._exact(attention, check=not self.checked)
            for i, scheme in enumerate(self.schemes):
                for name, sums in self._layer(attention, heads, scheme, gradients.get(attention.layer), window).items():
                    shape = (len(self.schemes), len(self.layers), self.heads)
                    arrays.setdefault(name, np.zeros(shape))[i, at] = sums

        suffix_attention(model, exact_view(prefilled, model.config), window, self.layers, visit)
        self.checked = True
        position = self.subject.windows.index(window) + 1
        self.on_note(f"window {position}/{len(self.subject.windows)}  {time.perf_counter() - started:.1f} s")
        return arrays

    def _exact(self, attention: Attention, check: bool) -> list[HeadAttention]:
        group = attention.queries.shape[1] // attention.keys.shape[1]
        heads = [
            HeadAttention(
                attention.queries[0, h * group : (h + 1) * group].float(),
                attention.keys[0, h].float(),
                attention.values[0, h].float(),
                attention.allowed,
                attention.scaling,
                attention.softcap,
            )
            for h in range(attention.keys.shape[1])
        ]
        if check:
            ours = torch.cat([head.output for head in heads]).transpose(0, 1)
            theirs = attention.output[0].float()
            off = float((ours - theirs).norm() / theirs.norm())
            if not off <= SAME_ATTENTION[attention.output.dtype]:
                raise UserError(
                    f"layer {attention.layer} of {self.subject.loaded.name} attends in a way that its queries, keys, mask "
                    f"and scaling do not give again (outputs differ by {off:.1e}); its attention cannot be captured"
                )
        return heads

    def _layer(
        self,
        attention: Attention,
        heads: list[HeadAttention],
        scheme: Scheme,
        gradients: dict[str, torch.Tensor] | None,
        window: Window,
    ) -> Arrays:
        """Sums of one layer under one scheme, each [KV heads]."""
        sums_of_layer: Arrays = {}
        read: dict[str, torch.Tensor] = {}
        for side, exact in {"key": attention.keys, "value": attention.values}.items():
            prefix = exact[:, :, : window.prefix_length]
            store = TokenStore(scheme.for_layer(attention.layer).sides[side])
            store.append(prefix)
            decoded = store.read()
            assert decoded is not None
            sums = reconstruction_sums(prefix[0], decoded[0])
            if gradients:
                sums |= predicted_sums(gradients[side][0], prefix[0], decoded[0])
            sums_of_layer |= {f"{side}_{name}": array for name, array in sums.items()}
            read[side] = torch.cat([decoded, exact[:, :, window.prefix_length :]], dim=2)[0].float()
        per_head = [head.sums(read["key"][h], read["value"][h]) for h, head in enumerate(heads)]
        return sums_of_layer | {name: np.array([sums[name] for sums in per_head]) for name in per_head[0]}
