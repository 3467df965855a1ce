"""The conformance suite, for every scheme of the registry."""

from itertools import cycle, pairwise, product

import pytest
import torch

from schemes import SCHEMES, parse_scheme
from schemes.registry import own_fields

from .cases import FAMILIES, OTHER, OTHER_CASES, PLAIN, PLAIN_CASES, REFUSED, choices, rebuild
from .conformance import CHECKS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# plain settings in every dtype; other choices in one each, in turn
PAIRS = [*product(PLAIN_CASES, DTYPES), *zip(OTHER_CASES, cycle(DTYPES), strict=False)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [pytest.param(*case.values, dtype, id=f"{case.id}-{str(dtype).removeprefix('torch.')}") for case, dtype in PAIRS],
)
def test_conformance(scheme, dtype, check):
    check(scheme, dtype)


def test_every_family_and_width_is_a_case():
    covered = {
        (type(case.values[0].quantizer), getattr(case.values[0].quantizer, "bits", None)) for case in PLAIN_CASES
    }
    for family in FAMILIES:
        for side, scheme in parse_scheme(family.example).sides.items():
            for bits in choices(family).get(f"{side}_bits", [getattr(scheme.quantizer, "bits", None)]):
                assert (type(scheme.quantizer), getattr(scheme.quantizer, "bits", None) and bits) in covered


@pytest.mark.parametrize("spec", PLAIN + OTHER)
def test_spec_round_trip(spec):
    scheme = parse_scheme(spec)
    assert parse_scheme(scheme.name) == scheme
    assert parse_scheme(scheme.name).name == scheme.name


@pytest.mark.parametrize("spec", REFUSED)
def test_refused(spec):
    with pytest.raises(ValueError, match="group_size=all with axis=channel"):
        parse_scheme(spec)


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES if "key_bits" in own_fields(family)])
def test_error_falls_with_bits(name, side):
    errors, x = [], torch.randn(1, 2, 256, 64)
    for bits in choices(SCHEMES[name])[f"{side}_bits"]:
        quantizer = parse_scheme(f"{name}:{side}_bits={bits}").sides[side].quantizer
        errors.append((rebuild(quantizer, x) - x).norm())
    assert all(1.5 * next_ < error for error, next_ in pairwise(errors))  # a bit more about halves the step
