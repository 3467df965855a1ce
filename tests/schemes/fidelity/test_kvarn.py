"""KVarN against its published code: the scales of tiles, codes, and what is read."""

import pytest

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack
from kvdelta.schemes.rotation import rotate
from kvdelta.schemes.wrapping import Wrapper

from .comparing import HALF, INPUTS, TIES, assert_equal_but_for_ties, load, side_of

GOLDEN = load("kvarn")
SOLVED = 2.0**-14
"""Allowed for the reference's 16 half steps in float32, each of which rounds sums of 128 numbers."""
WIDTHS = [(name, bits) for name in INPUTS for bits in ((2, 4) if side_of(name) == "key" else (2,))]


def quantized(name, bits, fields=""):
    side = side_of(name)
    quantizer = parse_scheme(f"kvarn:bits={bits}{fields}").sides[side].quantizer
    assert isinstance(quantizer, Wrapper)
    return quantizer.quantize(INPUTS[name].float())


def even(vector):
    """A tile's scales up to a common factor, which scale and offset take back: iterates that are as good may differ in it."""
    return vector.float() / vector.float().mean(-1, keepdim=True)


@pytest.mark.parametrize("name", INPUTS)
def test_vectors(name):
    """Each is rounded to float16, and so is the factor."""
    ours, golden = (even(v) for v in (quantized(name, 2).inner.vector, GOLDEN[f"{name}.vector"]))
    assert ((ours - golden).abs() <= (2 * HALF + SOLVED) * golden).all()


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_codes(name, bits):
    """Where the vector, or scale and offset, are rounded first moves a position: by 2⁻¹¹ each of x/s, and of offset/s."""
    held = quantized(name, bits)
    affine, golden = held.inner.inner, GOLDEN[f"{name}.codes{bits}"]
    turned = rotate(INPUTS[name].float(), "hadamard", 0).unflatten(2, (2, 128))
    vector = held.inner.vector.float()
    numbers = (turned / vector[..., None]).mT if side_of(name) == "key" else turned / vector[..., None, :]
    scale, offset = (part.float().reshape(*golden.shape[:-1], 1) for part in (affine.scale, affine.offset))
    at = (numbers - offset) / scale
    slack = (2 * HALF + SOLVED) * (numbers.abs() + offset.abs()) / scale
    assert assert_equal_but_for_ties(unpack(affine.codes, bits).view(golden.shape), golden, at, slack) < 0.1


@pytest.mark.parametrize("name", INPUTS)
def test_reads(name):
    """As for OScaR: roundings, and codes at ties."""
    x, read = INPUTS[name].float()[:, :1, 128:192], GOLDEN[f"{name}.read"].float()
    ours = quantized(name, 4 if side_of(name) == "key" else 2).dequantize()[:, :1, 128:192]
    assert (ours - x).norm() / (read - x).norm() == pytest.approx(1, abs=0.005)
    assert (ours - read).norm() < TIES * (ours - x).norm() + 3 * HALF * x.norm()


def test_iterations_are_told_apart():
    """Two pairs are too few for a tile of real values."""
    ours, golden = (
        even(v) for v in (quantized("smollm2.value", 2, ",iterations=2").inner.vector, GOLDEN["smollm2.value.vector"])
    )
    assert ((ours - golden).abs() > (2 * HALF + SOLVED) * golden).any()


def test_what_is_shipped_keeps_128_first_tokens():
    for side in parse_scheme("kvarn-vllm").sides.values():
        assert side.sink_tokens == 128
