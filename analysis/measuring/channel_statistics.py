"""`outliers`: which channels of keys and values stand out, by layer and KV head, and whether they stay the same."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from kvdelta.analysis.measuring.loop import Failing, measure_windows, named, stored_places
from kvdelta.analysis.reading.outliers import channel_ratio
from kvdelta.analysis.reading.selection import chosen
from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.capture import pre_rope_keys
from kvdelta.harness.options import Options
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.measurement import Arrays, Measurement
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import KV
from kvdelta.schemes.errors import UserError

PICTURES = 4  # so many heads at most are kept whole, for figures, where a user chose no more


def measure_outliers(
    options: Options,
    subject: Subject,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    pre_rope: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Measurement, Path]:
    """Statistics of the prefix's keys and values, [layers, KV heads, channels] for every window; the first window's
    full tensors of a few heads. layers, heads: None is all. pre_rope: also of keys before rotation.

    ValueError: a layer or head that does not exist; a model whose rotation cannot be undone.
    """
    model = subject.loaded.model
    layers_stored, heads_stored = stored_places(subject)
    measured, kv_heads = chosen("layer", layers, layers_stored), chosen("KV head", heads, heads_stored)
    if pre_rope:
        _check_pre_rope(model, measured)

    def of_batch(batch: Batch) -> list[Arrays]:
        started = time.perf_counter()
        prefilled = prefill(model, batch.prefix)
        collected: dict[str, list[dict[str, Tensor]]] = {}
        pictured = batch.windows[0] is subject.windows[0]
        kept: dict[str, list[Tensor]] = {}
        for layer in measured:
            held: Any = prefilled.layers[layer]
            sides: dict[str, Any] = {"key": held.keys, "value": held.values}
            if pre_rope:
                sides["pre_rope_key"] = pre_rope_keys(model, layer, sides["key"])
            for side, x in sides.items():
                x = x[:, kv_heads].float()
                collected.setdefault(side, []).append(statistics_of(x))
                if pictured:
                    kept.setdefault(side, []).append(x[0])
        by_name = {
            f"{side}_{name}": torch.stack([layer[name].to(model.device) for layer in by_layer], dim=1).cpu().numpy()
            for side, by_layer in collected.items()
            for name in by_layer[0]
        }
        of_windows: list[Arrays] = [{name: array[i] for name, array in by_name.items()} for i in range(len(batch))]
        if pictured:
            of_windows[0] |= _pictures(kept, _places(of_windows[0]["key_mean_abs"]), measured, kv_heads)
        on_note(f"{named(batch, subject.windows)}  {time.perf_counter() - started:.1f} s")
        return of_windows

    also = {"layers": measured, "heads": kv_heads, "pre_rope": pre_rope}
    return measure_windows(
        "outliers", options, subject, [], also, measured, kv_heads, of_batch, Failing([], on_note), on_note
    )


def _check_pre_rope(model: Any, layers: Sequence[int]) -> None:
    """Refuse, before any window, a model whose rotation cannot be undone."""
    try:
        for layer in layers:
            rotary_of(model, layer)
    except UserError as error:
        raise UserError(f"{error}; leave --pre-rope out") from None


def _places(mean_abs: np.ndarray) -> list[tuple[int, int]]:
    """(layer, head) positions to keep whole: all of a small choice, else the head whose keys stand out most."""
    ratio = channel_ratio(mean_abs)
    order = np.argsort(-ratio, axis=None)
    count = ratio.size if ratio.size <= PICTURES else 1
    return sorted((int(at // ratio.shape[1]), int(at % ratio.shape[1])) for at in order[:count])


def _pictures(
    kept: dict[str, list[Tensor]], places: list[tuple[int, int]], layers: Sequence[int], heads: Sequence[int]
) -> Arrays:
    """Which heads are kept whole, and their numbers in float16, by side; kept: of every layer [heads, tokens, channels]."""
    arrays: Arrays = {"pictured": np.array([(layers[at], heads[h]) for at, h in places])}
    for side, tensors in kept.items():
        x = np.stack([tensors[at][h].cpu().numpy() for at, h in places])
        arrays[f"picture_{side}"] = np.clip(x, -65504, 65504).astype(np.float16)
    return arrays


def statistics_of(x: KV) -> dict[str, Float32[Tensor, "batch heads _"]]:
    """Per channel [windows, heads, channels]: mean, sd, max |x|, mean |x|, mean x² and excess kurtosis (0 for a normal
    distribution, and where a channel is constant); per token [windows, heads, tokens]: norm. Computed in float64."""
    x = x.double()
    mean = x.mean(dim=2, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dim=2)
    fourth = centred.pow(4).mean(dim=2)
    kurtosis = torch.where(variance > 0, fourth / variance.square() - 3, 0.0)
    statistics = {
        "mean": mean[:, :, 0],
        "sd": variance.sqrt(),
        "max": x.abs().amax(dim=2),
        "mean_abs": x.abs().mean(dim=2),
        "mean_square": x.square().mean(dim=2),
        "kurtosis": kurtosis,
        "norm": x.norm(dim=3),
    }
    return {name: tensor.float() for name, tensor in statistics.items()}
