"""Kitty against its published code: which channels are boosted, codes, and what is read."""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

from .comparing import FLOATS, HALF, INPUTS, assert_equal_but_for_ties, load, side_of

GOLDEN = load("kitty")
KEYS = [name for name in INPUTS if side_of(name) == "key"]
VALUES = [name for name in INPUTS if side_of(name) == "value"]


def position(numbers, scale, offset):
    """In steps, and how far the rounding of scale and offset moves it."""
    at = (numbers - offset) / scale
    return at, HALF * (at.abs() + offset.abs() / scale) + FLOATS * numbers.abs() / scale


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("boost", [0.125, 0.25])
def test_keys(name, boost):
    x = INPUTS[name].float()
    held = parse_scheme(f"kitty:boost={boost}").key.quantizer.quantize(x)
    mask = GOLDEN[f"{name}.boosted{boost}"]
    ours = torch.zeros_like(mask).scatter(-1, held.boosted.long(), True)
    assert torch.equal(ours, mask)

    golden = GOLDEN[f"{name}.codes{boost}"]
    order = mask.logical_not().long().argsort(dim=-1, stable=True)[..., None].expand_as(golden)
    blocks = x.unflatten(2, (2, 128)).mT.gather(-2, order)
    codes = torch.cat([unpack(held.codes, 4), unpack(held.low_codes, 2)], dim=-1).view(golden.shape)
    at, slack = position(blocks, held.scale.float()[..., None], held.offset.float()[..., None])
    assert assert_equal_but_for_ties(codes, golden.gather(-2, order), at, slack) < 0.1

    read = GOLDEN[f"{name}.read{boost}"].float()
    ours, exact = held.dequantize()[:, :1, 128:192], x[:, :1, 128:192]
    assert (ours - exact).norm() / (read - exact).norm() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    x = INPUTS[name].float()
    held = parse_scheme("kitty").value.quantizer.quantize(x)
    at, slack = position(x, held.scale.float(), held.offset.float())
    golden = GOLDEN[f"{name}.codes"]
    assert assert_equal_but_for_ties(unpack(held.codes, 2), golden, at, slack) < 0.02
    read, ours, exact = GOLDEN[f"{name}.read"].float(), held.dequantize()[:, :1, 128:192], x[:, :1, 128:192]
    assert (ours - exact).norm() / (read - exact).norm() == pytest.approx(1, abs=0.005)


def test_a_quarter_is_what_the_released_cache_boosts():
    assert parse_scheme("kitty25") == parse_scheme("kitty:boost=0.25") != parse_scheme("kitty")
