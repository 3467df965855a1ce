"""Which candidates keep a budget of bits, measured while they decode."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvdelta.analysis.measuring.candidates import Candidate
from kvdelta.analysis.reading.carrying import SAME_BITS
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.protocols import prefill
from kvdelta.harness.subject.prepared import Subject
from kvdelta.schemes import Scheme, TokenStore
from kvdelta.schemes.errors import UserError


@dataclass
class Candidates:
    """within: those of a budget; larger: those beyond it, by bits; refused: those that cannot be used, and why."""

    within: list[Candidate] = field(default_factory=list)
    larger: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def fitting(candidates: Sequence[Candidate], budget: float, subjects: Sequence[Subject], step: int) -> Candidates:
    """Of each family the largest within a budget of measured bits, in every model, decoding in steps of so many tokens; all of
    them where several are as large."""
    found = Candidates()
    measured: list[Candidate] = []
    whole = [prefill(subject.loaded.model, subject.windows[0].tokens[None]) for subject in subjects]
    for one in candidates:
        try:
            bits = max(_bits(one.spec, subject, kv, step) for subject, kv in zip(subjects, whole, strict=True))
        except UserError as error:
            found.refused[one.spec] = str(error)
        else:
            measured.append(Candidate(one.spec, one.family, bits))
    kept = [one for one in measured if one.bits <= budget + SAME_BITS]
    largest: dict[str, float] = {}
    for one in kept:
        largest[one.family] = max(one.bits, largest.get(one.family, 0.0))
    found.within = [one for one in kept if one.bits >= largest[one.family] - SAME_BITS]
    found.larger = sorted((one for one in measured if one not in kept), key=lambda one: one.bits)
    return found


def _bits(spec: str, subject: Subject, whole: Any, step: int) -> float:
    """Of one layer, or of all where they are not stored alike."""
    contender, model, prefix = SchemeContender.of(spec), subject.loaded.model, subject.windows[0].prefix_length
    if contender.scheme.kinds != "full":
        raise UserError(f"{spec} stores layers with a sliding window, which are not predicted; leave layers=… out")
    contender.check(model, prefix)
    cache = contender.empty(model)
    stored = cache.quantized_layers
    layers = stored if contender.scheme.layers else stored[len(stored) // 2 :][:1]
    return mean_bits(cache.scheme, {layer: whole.layers[layer] for layer in layers}, prefix, step)


def mean_bits(scheme: Scheme, layers: dict[int, Any], prefix: int, step: int) -> float:
    """Measured bits a number of keys and values that are held, on average, while what follows a prefix is decoded.

    At the prefix's own end a block may have just been filled, or want one token: a scheme with blocks of 128 tokens holds between 0
    and 127 exact ones, which no single length tells. scheme: bound to the model; layers: with the `keys` and `values` of whole
    windows; step: tokens a forward.
    """
    found: list[tuple[float, int]] = []
    for layer, exact in layers.items():
        rules = scheme.for_layer(layer).sides
        for rule, x in zip(rules.values(), (exact.keys, exact.values), strict=True):
            store = TokenStore(rule)
            store.append(x[:, :, :prefix])
            at_each = []
            for chunk in x[:, :, prefix:].split(step, dim=2):
                at_each.append(8 * store.counted_bytes() * x.shape[2] / (store.length * x.numel()))
                store.append(chunk)
            found.append((sum(at_each) / len(at_each), x.numel()))
    return sum(bits * numbers for bits, numbers in found) / sum(numbers for _, numbers in found)
