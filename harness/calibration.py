"""Calibrate a scheme on a text: capture keys before RoPE and values, and hand them to the family's own `calibrate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness.caches.rotary import rotary_of
from harness.capture import full_layers, suffix_gradients
from harness.protocols import prefill
from harness.records.writing import write_file
from harness.subject.prepared import Subject
from harness.subject.probing import check_continues, kv_shapes
from harness.subject.text import token_sha256
from schemes.calibration_file import Calibration, as_bytes, facts_path
from schemes.registry import calibrated_family

Weights = Literal["gradient", "one"]


def calibrate(
    spec: str,
    subject: Subject,
    out: str | Path,
    weights: Weights = "gradient",
    on_note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Calibrate `spec` on the prefixes of the subject's windows; write `out` and, beside it, its JSON. Returns the path.

    weights: how much an error of each number counts: its squared gradient of the suffix's loss, or 1. ValueError for a
    scheme that needs no calibration, and for a file that cannot be written.
    """
    family, fields = calibrated_family(spec)
    assert family.calibrate is not None
    path = Path(out)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    samples, counts = _captured(subject, weights, on_note)
    on_note(f"thresholds and levels of {len(samples)} layers")
    tensors: dict[str, Tensor] = {}
    for layer in samples:
        tensors |= family.calibrate(layer, samples[layer], counts[layer], fields)
    facts = {
        "scheme": family.name,
        **{name: value for name, value in fields.items() if value != ""},
        "weights": weights,
        "model": subject.loaded.source,
        "text": {
            "name": subject.text.name,
            "sha256": subject.text.source.get("sha256", ""),
            "token_sha256": token_sha256(subject.tokens),
        },
        "tokens": sum(window.prefix_length for window in subject.windows),
        "windows": [window.index for window in subject.windows],
        "layers": sorted(samples),
    }
    content, said = as_bytes(Calibration(tensors, facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    write_file(facts_path(path), said)
    return path


def spec_with(spec: str, path: Path) -> str:
    """The spec with its calibration."""
    return f"{spec}{',' if ':' in spec else ':'}calibration={path}"


def _captured(
    subject: Subject, weights: Weights, on_note: Callable[[str], None]
) -> tuple[dict[int, dict[str, Tensor]], dict[int, dict[str, Tensor]]]:
    """Keys before RoPE and values of all windows, and their weights: [heads, tokens, channels] by layer and side."""
    model = subject.loaded.model
    if weights == "gradient":
        check_continues(model)
    rotaries = {layer: rotary_of(model, layer) for layer in kv_shapes(model)}  # refused before any window
    found: list[dict[int, dict[str, list[Tensor]]]] = [{}, {}]
    for number, window in enumerate(subject.windows):
        prefilled = prefill(model, window.prefix)
        gradients = suffix_gradients(model, window, prefilled) if weights == "gradient" else None
        for layer in full_layers(prefilled):
            held: Any = prefilled.layers[layer]
            seen = {"key": rotaries[layer].unrotate(held.keys.float(), 0), "value": held.values.float()}
            if gradients is None:
                counts = {side: torch.ones_like(x) for side, x in seen.items()}
            else:
                gradient = gradients[layer]
                rotated_back = rotaries[layer].unrotate(gradient["key"].float(), 0)
                counts = {"key": rotated_back.square(), "value": gradient["value"].float().square()}
            for place, tensors in zip(found, (seen, counts), strict=True):
                for side, x in tensors.items():
                    place.setdefault(layer, {}).setdefault(side, []).append(x[0].cpu())
        on_note(f"window {number + 1}/{len(subject.windows)} captured")
    joined = [
        {layer: {side: torch.cat(pieces, dim=1) for side, pieces in sides.items()} for layer, sides in place.items()}
        for place in found
    ]
    return joined[0], joined[1]
