"""OScaR against its published code: which level each number has, and what is read."""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack
from kvdelta.schemes.rotation import rotate

from .comparing import FLOATS, HALF, INPUTS, TIES, assert_equal_but_for_ties, load, side_of

GOLDEN = load("oscar")


def quantized(name, bits, fields=""):
    """What is held, its affine part, and the numbers in units of the stored scale, groups last."""
    x, side = INPUTS[name].float(), side_of(name)
    quantizer = parse_scheme(f"oscar:bits={bits}{fields}").sides[side].quantizer
    held = quantizer.quantize(x)
    numbers, affine, grid = rotate(x, "hadamard", 0), held.inner, quantizer.inner
    if side == "key":
        numbers, affine, grid = numbers / affine.norm.float().flatten(2)[..., None], affine.inner, grid.inner
    return held, affine, grid.grouping.split(numbers)[0] / affine.scale.float().view(*affine.scale.shape)[..., None]


@pytest.mark.parametrize("name", [name for name in INPUTS if side_of(name) == "key"])
def test_norms(name):
    """Both are float32 norms rounded to float16: the next one at most."""
    golden = GOLDEN[f"{name}.norm"]
    assert torch.allclose(quantized(name, 2)[0].inner.norm.flatten().float(), golden, rtol=2 * HALF, atol=0)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bits", [2, 4])
def test_levels(name, bits):
    """The reference does not round the scale, which moves x/s by 2⁻¹¹ of it."""
    _, affine, at = quantized(name, bits)
    codes, zero = GOLDEN[f"{name}.codes{bits}"].long(), GOLDEN[f"{name}.zero{bits}"].long()
    start, slack = -at.amin(-1), HALF + FLOATS
    ours = affine.zero.view(zero.shape)
    assert assert_equal_but_for_ties(ours, zero, start, slack * start.abs()) < 0.06
    equal = ours == zero
    held, at = unpack(affine.codes, bits).view(codes.shape)[equal], at[equal]
    assert assert_equal_but_for_ties(held, codes[equal], at, slack * at.abs()) < 0.06


@pytest.mark.parametrize("name", INPUTS)
def test_reads(name):
    x, read = INPUTS[name].float()[:, :1, :64], GOLDEN[f"{name}.read2"].float()
    ours = quantized(name, 2)[0].dequantize()[:, :1, :64]
    assert (ours - x).norm() / (read - x).norm() == pytest.approx(1, abs=0.005)
    assert (ours - read).norm() < TIES * (ours - x).norm() + 3 * HALF * x.norm()


@pytest.mark.parametrize("name", INPUTS)
def test_a_float_zero_is_another_scheme(name):
    _, affine, _ = quantized(name, 2, ",zero=float")
    codes = GOLDEN[f"{name}.codes2"]
    assert (unpack(affine.codes, 2).view(codes.shape) != codes).float().mean() > 0.2
