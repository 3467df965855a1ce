"""KIVI against its published code on real keys and values: scale, offset and codes."""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

from .comparing import HALF, INPUTS, assert_equal_but_for_ties, load, side_of

GOLDEN = load("kivi")


def quantized(name, bits):
    """What is held, and the numbers with groups last."""
    quantizer = parse_scheme(f"kivi:bits={bits},group_size=32").sides[side_of(name)].quantizer
    return quantizer.quantize(INPUTS[name]), quantizer.grouping.split(INPUTS[name].float())[0]


@pytest.mark.parametrize("name", INPUTS)
def test_scale_and_offset(name):
    """The reference computes in float16: range and scale are rounded apart there, once here."""
    held, _ = quantized(name, 2)
    golden = GOLDEN[f"{name}.offset"]
    assert torch.equal(held.offset.view(golden.shape), golden)
    golden = GOLDEN[f"{name}.scale"].float()
    assert torch.allclose(held.scale.view(golden.shape).float(), golden, rtol=3.1 * HALF, atol=0)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bits", [2, 4])
def test_codes(name, bits):
    """x − min, range, scale and quotient are rounded to float16 there, the scale alone here: five times 2⁻¹¹ of the code."""
    held, groups = quantized(name, bits)
    golden = GOLDEN[f"{name}.codes{bits}"]
    scale, offset = (part.float().reshape(*golden.shape[:-1], 1) for part in (held.scale, held.offset))
    at = (groups - offset) / scale
    unsure = assert_equal_but_for_ties(unpack(held.codes, bits).view(golden.shape), golden, at, 5.1 * HALF * at)
    assert unsure < 0.06
