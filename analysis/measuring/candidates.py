"""Who races for a budget of bits: every family of the registry, in each of its widths, and compositions of them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvdelta.harness.caches.key_bias import key_bias_of
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.schemes import SCHEMES, parse_scheme
from kvdelta.schemes.engines import presets
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.fields import alternatives, shown
from kvdelta.schemes.registry import own_fields, shorthands

LAYOUT = "asymmetric:key_axis=channel,value_axis=token,group_size=32,bits={}"
"""Keys per channel, values per token: KIVI's layout without its exact tail."""

AROUND = (
    "hadamard(asymmetric:bits={})", "centred(asymmetric:bits={})", "centred(hadamard(asymmetric:bits={}))",
    "hadamard(clip(asymmetric:bits={}):c=0.8)", "gear(kcvt:bits={})", "gear(asymmetric:bits={})",
    LAYOUT,
)  # fmt: skip
WIDTHS = (2, 3, 4, 8)
WIDER_KEYS = ((3, 2), (4, 2), (4, 3), (8, 4))
"""Bits of keys and values, where keys have more."""

BASELINES = {f"kivi:bits={bits},group_size={size}": bits for bits in (2, 3, 4, 8) for size in (32, 64, 128)}
"""Uniform KIVI, in the sizes that there are: bits of its codes by spec."""


@dataclass(frozen=True)
class Candidate:
    """spec: as a user would give it; family: what it is a width of; bits: measured, a number, on average over what is decoded, the
    most over models."""

    spec: str
    family: str
    bits: float = 0.0


def all_candidates(unbiased: bool) -> list[Candidate]:
    """Of every family that needs no calibration, its widths and short names; compositions; each with and without four exact first
    tokens; unbiased: each also without what the bias of the key projections contributes."""
    found = [
        Candidate(spec, family.name)
        for family in SCHEMES.values()
        if not family.wraps and family.calibrate is None
        for spec in [*_widths(family), *family.short]
    ]
    found += [Candidate(template.format(bits), template.replace("{}", "n")) for template in AROUND for bits in WIDTHS]
    found += [
        Candidate(f"{name}:key_bits={key},value_bits={value}", f"{name}, wider keys")
        for name, family in SCHEMES.items()
        if not family.wraps and family.calibrate is None
        for key, value in WIDER_KEYS
        if _takes(family, "key_bits", key) and _takes(family, "value_bits", value)
    ]
    found = [one for one in found if not _parsed(one.spec).lossless]
    found += [
        Candidate(f"{one.spec}{',' if _fields(one.spec) else ':'}sink_tokens=4", f"{one.family}, 4 sinks")
        for one in found
        if not any(side.sink_tokens for side in _parsed(one.spec).sides.values())
    ]
    once: dict[str, Candidate] = {}
    for one in found:
        once.setdefault(_parsed(one.spec).identity, one)
    found = list(once.values())
    return [*found, *map(_unbiased, found)] if unbiased else found


_parsed = functools.cache(parse_scheme)  # of the registry's own specs: no file stands behind them


def has_key_bias(model: Any) -> bool:
    """Whether a bias of its key projections reaches the cache, which unbiased(…) takes away."""
    try:
        return any(key_bias_of(model, layer) is not None for layer in kv_shapes(model))
    except UserError:
        return False


def of_engine(engine: str) -> list[Candidate]:
    """What an engine can store, each a family of its own."""
    return of_specs([f"{engine}/{name}" for name in presets(engine)])


def of_specs(specs: Sequence[str]) -> list[Candidate]:
    """As they are given, each a family of its own."""
    once = {parse_scheme(spec).identity: spec for spec in reversed(specs)}
    return [Candidate(spec, spec) for spec in reversed(once.values()) if not parse_scheme(spec).lossless]


def _widths(family: Family) -> list[str]:
    """Its own specs: one for each width that both sides can have."""
    both, own = shorthands(family), own_fields(family)
    for name in ("bits", "type", "format"):
        known = [own[side] for side in both.get(name, (name,)) if side in own]
        if known:
            choices = [alternatives(one.type)[0] for one in known]
            shared = [value for value in choices[0] if all(value in others for others in choices)]
            return [family.name, *(f"{family.name}:{name}={shown(value)}" for value in shared)]
    return [family.name]


def _takes(family: Family, name: str, value: int) -> bool:
    known = own_fields(family).get(name)
    return known is not None and value in alternatives(known.type)[0]


def _fields(spec: str) -> bool:
    """Whether fields stand behind it already."""
    return ":" in spec[spec.rfind(")") + 1 :]


def _unbiased(one: Candidate) -> Candidate:
    """Rules for tokens stand outside the wrapper."""
    spec, sinks = one.spec, ""
    if spec.endswith("sink_tokens=4"):
        spec, sinks = spec.removesuffix("sink_tokens=4")[:-1], ":sink_tokens=4"
    return Candidate(f"unbiased({spec}){sinks}", f"unbiased, {one.family}")
