"""The Hadamard rotation, clipping, and the grids behind them against QuaRot's own code, every eighth token (README.md).

A group is a head of a token. Its scale is float32, ours float16: x/scale moves by 2⁻¹¹ of itself, and so do −min/scale, of which the
zero is rounded, and (x − min)/scale of the released cache, where the offset is rounded too.
"""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack
from kvdelta.schemes.rotation import rotate

from .comparing import FLOATS, HALF, INPUTS, assert_equal_but_for_ties, load, side_of

GOLDEN = load("quarot")
EVERY = 8
WHOLE_ZERO = {  # golden → spec with an integer zero, and the clipping ratio
    "clipped": ("hadamard(clip(asymmetric:bits=4,group_size=all,zero=integer):c=0.95)", 0.95),
    "clipped3": ("hadamard(clip(asymmetric:bits=3,group_size=all,zero=integer):c=0.95)", 0.95),
    "asymmetric": ("hadamard(asymmetric:bits=4,group_size=all,zero=integer)", 1.0),
    "plain": ("clip(asymmetric:bits=4,group_size=all,zero=integer):c=0.9", 0.9),
}

real = pytest.mark.parametrize("name", INPUTS)


def stored(name, spec):
    """The affine part of what is held of every eighth token, its codes, and the numbers that it is of: [heads, tokens, channels]."""
    x = INPUTS[name].float()[:, :, ::EVERY]
    affine = parse_scheme(spec).sides[side_of(name)].quantizer.quantize(x)
    numbers = rotate(x, "hadamard", 0) if spec.startswith("hadamard") else x
    while hasattr(affine, "inner"):
        affine = affine.inner
    return affine, unpack(affine.codes, affine.bits).view(x.shape)[0], numbers[0]


@real
def test_rotation(name):
    """64 numbers are added, there as a matrix multiplication: 6 additions in a row here, up to 64 there, each within 2⁻²⁴ of
    the sum of sizes."""
    x = INPUTS[name].float()[0, :, ::32]
    ours = rotate(INPUTS[name].float(), "hadamard", 0)[0, :, ::32]
    sums = x.abs().sum(-1, keepdim=True) / 8
    assert ((ours - GOLDEN[f"{name}.rotated"]).abs() <= 70 * 2.0**-24 * sums).all()
    assert (rotate(x[None], "signed-hadamard", 0)[0] - GOLDEN[f"{name}.rotated"]).norm() > 0.5 * ours.norm()


@real
@pytest.mark.parametrize("case", WHOLE_ZERO)
def test_scale_zero_and_codes(name, case):
    spec, c = WHOLE_ZERO[case]
    affine, codes, numbers = stored(name, spec)
    scale, golden_zero = GOLDEN[f"{name}.{case}.scale"], GOLDEN[f"{name}.{case}.zero"]
    zero = affine.zero.view(scale.shape)
    assert torch.allclose(affine.scale.view(scale.shape).float(), scale, rtol=HALF + FLOATS, atol=0)
    start = -c * numbers.amin(-1) / scale
    slack = HALF + FLOATS
    assert assert_equal_but_for_ties(zero, golden_zero, start, slack * start.abs()) < 0.05
    equal = zero == golden_zero
    at = (numbers / scale[..., None])[equal]
    # a clipped number's position is that of the end: it has the outermost code on both sides, whatever its tie
    golden = GOLDEN[f"{name}.{case}.codes"][equal]
    assert assert_equal_but_for_ties(codes[equal], golden, at, slack * at.abs()) < 0.05


@real
def test_symmetric(name):
    affine, codes, numbers = stored(name, "hadamard(symmetric:bits=4,group_size=all)")
    scale, golden = GOLDEN[f"{name}.symmetric.scale"], GOLDEN[f"{name}.symmetric.codes"]
    assert torch.allclose(affine.scale.view(scale.shape).float(), scale, rtol=HALF + FLOATS, atol=0)
    at = numbers / scale[..., None]
    assert assert_equal_but_for_ties(codes.int() - 7, golden, at, (HALF + FLOATS) * at.abs()) < 0.05


@real
def test_the_released_cache(name):
    """Its keys: rotated, with a float zero. Its values are rotated by the weights before them, which is the same."""
    affine, codes, numbers = stored(name, "hadamard(asymmetric:bits=4,group_size=all)")
    scale, offset = GOLDEN[f"{name}.cache.scale"], GOLDEN[f"{name}.cache.offset"]
    assert torch.allclose(affine.scale.view(scale.shape).float(), scale, rtol=HALF + FLOATS, atol=0)
    assert torch.allclose(affine.offset.view(offset.shape).float(), offset, rtol=HALF + FLOATS, atol=0)
    at = (numbers - offset[..., None]) / scale[..., None]
    slack = (HALF + FLOATS) * (at.abs() + (offset.abs() / scale)[..., None])
    assert assert_equal_but_for_ties(codes, GOLDEN[f"{name}.cache.codes"], at, slack) < 0.05


@real
def test_what_wrong_settings_would_do(name):
    golden = GOLDEN[f"{name}.clipped.codes"]
    for spec in (
        "clip(asymmetric:bits=4,group_size=all,zero=integer):c=0.95",
        "hadamard(clip(asymmetric:bits=4,group_size=all,zero=integer):c=0.8)",
        "hadamard(asymmetric:bits=4,group_size=all,zero=integer)",
    ):
        assert (stored(name, spec)[1] != golden).float().mean() > 0.1
