"""The conformance suite, for every scheme of the registry; a new family is picked up from its fields."""

from itertools import pairwise, product

import pytest
import torch

from schemes import SCHEMES, parse_scheme
from schemes.registry import _alternatives, fields_of

from .conformance import CHECKS, rebuild

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def specs(family):
    """The default; bits × axis of both sides; every other choice by itself with the same; the short names."""
    known = fields_of(family)
    choices = {name: _alternatives(field.type)[0] for name, field in known.items()}
    sides = {
        name.removeprefix("key_"): values for name, values in choices.items() if name.startswith("key_") and values
    }
    others = [{}] + [
        {name: value}
        for name, values in choices.items()
        for value in values
        if not name.startswith(("key_", "value_")) and value != known[name].default
    ]
    for *chosen, other in product(*sides.values(), others):
        settings = {**dict(zip(sides, chosen, strict=True)), **other}
        yield family.name + "".join(f"{',' if i else ':'}{k}={v}" for i, (k, v) in enumerate(settings.items()))
    yield from family.short


def schemes():
    """Every spec that is a scheme; values that do not go together are refused, as test_registry says."""
    for family in SCHEMES.values():
        for spec in specs(family):
            try:
                yield spec, parse_scheme(spec)
            except ValueError as error:
                assert "group_size=all with axis=channel" in str(error)


def cases():
    """The different tensor schemes among them: keys and values that are stored alike are one case."""
    seen = {}
    for spec, scheme in schemes():
        for side, tensor_scheme in scheme.sides.items():
            seen.setdefault(tensor_scheme, f"{spec}-{side}")
    return [pytest.param(tensor_scheme, id=name) for tensor_scheme, name in seen.items()]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("scheme", cases())
def test_conformance(scheme, dtype, check):
    check(scheme, dtype)


def test_every_family_and_width_is_a_case():
    covered = {(type(p.values[0].quantizer), getattr(p.values[0].quantizer, "bits", None)) for p in cases()}
    for family in SCHEMES.values():
        for side, tensor_scheme in parse_scheme(family.name).sides.items():
            field = fields_of(family).get(f"{side}_bits")
            for bits in _alternatives(field.type)[0] if field else [None]:
                assert (type(tensor_scheme.quantizer), bits) in covered


@pytest.mark.parametrize(("spec", "scheme"), list(schemes()))
def test_spec_round_trip(spec, scheme):
    assert parse_scheme(scheme.name) == scheme
    assert parse_scheme(scheme.name).name == scheme.name


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("family", [family for family in SCHEMES.values() if "key_bits" in fields_of(family)])
def test_error_falls_with_bits(family, side):
    errors = []
    for bits in _alternatives(fields_of(family)[f"{side}_bits"].type)[0]:
        scheme = parse_scheme(f"{family.name}:{side}_bits={bits}").sides[side]
        x = torch.randn(1, 2, 256, 64)
        errors.append((rebuild(scheme.quantizer, x) - x).norm())
    assert all(1.5 * next_ < error for error, next_ in pairwise(errors))  # a bit more about halves the step
