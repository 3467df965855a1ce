"""`outliers`: which channels of keys and values stand out, by layer and KV head, and whether they stay the same."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.measuring.loop import measure_windows, stored_places
from analysis.reading.outliers import channel_ratio
from analysis.reading.selection import chosen
from harness.caches.rotary import rotary_of
from harness.capture import pre_rope_keys
from harness.options import Options
from harness.protocols import prefill
from harness.records.measurement import Arrays, Measurement
from harness.subject.prepared import Subject
from harness.subject.windows import Window
from schemes.errors import UserError

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

    def one_window(window: Window) -> Arrays:
        started = time.perf_counter()
        prefilled = prefill(model, window.prefix)
        collected: dict[str, list[dict[str, np.ndarray]]] = {}
        kept: dict[str, list[Tensor]] = {}
        for layer in measured:
            held: Any = prefilled.layers[layer]
            sides: dict[str, Any] = {"key": held.keys, "value": held.values}
            if pre_rope:
                sides["pre_rope_key"] = pre_rope_keys(model, layer, sides["key"])
            for side, x in sides.items():
                x = x[0, kv_heads].float()
                collected.setdefault(side, []).append(statistics_of(x))
                kept.setdefault(side, []).append(x)
        arrays = {
            f"{side}_{name}": np.stack([layer[name] for layer in by_layer])
            for side, by_layer in collected.items()
            for name in by_layer[0]
        }
        if window is subject.windows[0]:
            places = _places(arrays["key_mean_abs"])
            arrays["pictured"] = np.array([(measured[at], kv_heads[h]) for at, h in places])
            for side, tensors in kept.items():
                x = np.stack([tensors[at][h].cpu().numpy() for at, h in places])
                arrays[f"picture_{side}"] = np.clip(x, -65504, 65504).astype(np.float16)
        position = subject.windows.index(window) + 1
        on_note(f"window {position}/{len(subject.windows)}  {time.perf_counter() - started:.1f} s")
        return arrays

    also = {"layers": measured, "heads": kv_heads, "pre_rope": pre_rope}
    return measure_windows("outliers", options, subject, [], also, measured, kv_heads, one_window, on_note)


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


def statistics_of(x: Float[Tensor, "heads tokens channels"]) -> dict[str, np.ndarray]:
    """Per channel [heads, channels]: mean, sd, max |x|, mean |x|, mean x² and excess kurtosis (0 for a normal
    distribution, and where a channel is constant); per token [heads, tokens]: norm. In float64."""
    x = x.double()
    mean = x.mean(dim=1, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dim=1)
    fourth = centred.pow(4).mean(dim=1)
    kurtosis = torch.where(variance > 0, fourth / variance.square() - 3, 0.0)
    statistics = {
        "mean": mean[:, 0],
        "sd": variance.sqrt(),
        "max": x.abs().amax(dim=1),
        "mean_abs": x.abs().mean(dim=1),
        "mean_square": x.square().mean(dim=1),
        "kurtosis": kurtosis,
        "norm": x.norm(dim=2),
    }
    return {name: tensor.cpu().numpy().astype(np.float32) for name, tensor in statistics.items()}
