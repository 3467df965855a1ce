"""Calibrate a scheme on a text: capture keys before RoPE and values, and hand them to the family's own `calibrate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.capture import suffix_gradients
from kvdelta.harness.leaks import seen_text
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.writing import check_writable, write_file
from kvdelta.harness.subject.kinds import full_layers
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.probing import check_continues, kv_shapes
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes.calibration_file import Calibration, as_bytes, facts_path
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import quoted
from kvdelta.schemes.registry import calibrated_family, parse_scheme

Weights = Literal["gradient", "one"]


def calibrate(
    spec: str,
    subject: Subject,
    out: str | Path,
    weights: Weights = "gradient",
    on_note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Calibrate `spec` on the prefixes of the subject's windows; write `out` and, beside it, its JSON. Returns the path.

    The first tokens of a prefix that the scheme keeps exact (its sinks) are left out: they are never quantized, and the
    first of all would outweigh the others. weights: how much an error of each number counts: its squared gradient of the
    suffix's loss, or 1. UserError for a scheme that needs no calibration, prefixes that are sinks alone, and a file that
    cannot be written.
    """
    family, fields = calibrated_family(spec)
    assert family.calibrate is not None
    sinks = max(side.sink_tokens for side in parse_scheme(spec).sides.values())
    shortest = min(window.prefix_length for window in subject.windows)
    if sinks >= shortest:
        raise UserError(
            f"{spec} keeps the first {sinks} tokens exact, all {shortest} of a prefix: nothing is left to calibrate on; "
            "choose fewer, or longer windows"
        )
    path = Path(out)
    if not path.name:
        raise UserError(f"calibrate writes a file, and {str(out)!r} names none; give --out kvquant3.safetensors")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    check_writable(path)
    check_writable(facts_path(path))
    samples, sample_weights = _captured(subject, sinks, weights, on_note)
    on_note(f"thresholds and levels of {len(samples)} layers")
    tables: dict[str, Tensor] = {}
    for layer in samples:
        tables |= family.calibrate(layer, samples[layer], sample_weights[layer], fields)
    facts = {
        "scheme": family.name,
        **{name: value for name, value in fields.items() if value != ""},
        "sink_tokens": sinks,
        "weights": weights,
        "model": subject.loaded.source,
        "text": seen_text(subject),
        "tokens": sum(window.prefix_length - sinks for window in subject.windows),
        "windows": [window.index for window in subject.windows],
        "layers": sorted(samples),
    }
    table_bytes, fact_bytes = as_bytes(Calibration(tables, facts))
    write_file(path, table_bytes)
    write_file(facts_path(path), fact_bytes)
    return path


def spec_with(spec: str, path: Path) -> str:
    """The spec with its calibration."""
    return f"{spec}{',' if ':' in spec else ':'}calibration={quoted(str(path))}"


def _captured(
    subject: Subject, sinks: int, weights: Weights, on_note: Callable[[str], None]
) -> tuple[dict[int, dict[str, Tensor]], dict[int, dict[str, Tensor]]]:
    """Keys before RoPE and values of all windows but for their first `sinks` tokens, and the weights of these numbers:
    [heads, tokens, channels] by layer and side."""
    model = subject.loaded.model
    if weights == "gradient":
        check_continues(model)
    rotaries = {layer: rotary_of(model, layer) for layer in kv_shapes(model)}  # refused before any window
    samples: dict[int, dict[str, list[Tensor]]] = {}
    sample_weights: dict[int, dict[str, list[Tensor]]] = {}
    for number, window in enumerate(subject.windows):
        prefilled = prefill(model, window.prefix)
        gradients = suffix_gradients(model, Batch((window,)), prefilled) if weights == "gradient" else None
        for layer in full_layers(prefilled):
            cached: Any = prefilled.layers[layer]
            keys = rotaries[layer].unrotate(cached.keys.float(), 0)
            numbers = {"key": keys, "value": cached.values.float()}
            if gradients is None:
                counts = {side: torch.ones_like(x) for side, x in numbers.items()}
            else:
                gradient = gradients[layer]
                rotated_back = rotaries[layer].unrotate(gradient["key"].float(), 0)
                counts = {"key": rotated_back.square(), "value": gradient["value"].float().square()}
            for pieces, tensors in ((samples, numbers), (sample_weights, counts)):
                for side, x in tensors.items():
                    pieces.setdefault(layer, {}).setdefault(side, []).append(x[0, :, sinks:].cpu())
        on_note(f"window {number + 1}/{len(subject.windows)} captured")
    return _joined(samples), _joined(sample_weights)


def _joined(pieces: dict[int, dict[str, list[Tensor]]]) -> dict[int, dict[str, Tensor]]:
    return {
        layer: {side: torch.cat(windows, dim=1) for side, windows in sides.items()} for layer, sides in pieces.items()
    }
