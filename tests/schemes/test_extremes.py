"""Whatever number a field is given: a scheme that quantizes a small tensor, or a sentence."""

import pytest
import torch

from kvdelta.schemes import UserError, parse_scheme
from kvdelta.schemes.fields import RULES, alternatives
from kvdelta.schemes.registry import own_fields, shorthands

from .cases import FAMILIES

NUMBERS = {
    int: [-1, 0, 1, 2, 3, 7, 33, 2**31, 2**63, 10**30],
    float: [-1, 0, 1e-300, 0.5, 1, 1.5, 1e300, "nan", "inf", "-inf"],
}
WIDTHS = [1, 2, 24, 64]
INNER = ["asym8", "asym8:axis=channel,group_size=8", "kivi:bits=8"]


def specs(family):
    """One number of one field at a time, at 8 bits where there are: no group is refused because it ends inside a byte."""
    wide = (
        "bits=8," if "bits" in shorthands(family) and 8 in alternatives(own_fields(family)["key_bits"].type)[0] else ""
    )
    heads = [f"{family.name}({inner})" for inner in INNER] if family.wraps else [family.name]
    for name, field in own_fields(family).items():
        drawn = "signs=random," if name == "seed" and "signs" in own_fields(family) else ""
        for kind in alternatives(field.type)[1]:
            numbers = [number for number in NUMBERS[kind] if name != "iters" or number < 2**31]  # it would take years
            yield from (f"{head}:{wide}{drawn}{name}={number}" for head in heads for number in numbers)
    if family.name == "asymmetric":  # what every scheme takes
        yield from (f"asymmetric:{rule.name}={number}" for rule in RULES if rule.type is int for number in NUMBERS[int])
    yield family.example


def sentence(call, *arguments):
    """What it says, where it refuses; "" where it does not."""
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_scheme_or_a_sentence(family):
    """A line that quotes the spec, when it is parsed, or names the width, when a model's is checked; what passes both
    encodes a group to finite numbers."""
    for spec in specs(family):
        if refused := sentence(parse_scheme, spec):
            assert refused.startswith(f"scheme {spec!r}: ")
            assert "\n" not in refused
            continue
        scheme = parse_scheme(spec)
        for channels in WIDTHS:
            if refused := sentence(scheme.check, channels):
                assert str(channels) in refused
                continue
            for quantizer in [
                side.quantizer for side in scheme.sides.values() if side.quantizer.tokens_per_group <= 128
            ]:
                x = torch.randn(1, 2, quantizer.tokens_per_group, channels)
                rebuilt = quantizer.quantize(x).dequantize()
                assert rebuilt.shape == x.shape
                assert rebuilt.isfinite().all()
