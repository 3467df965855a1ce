"""NF4 against bitsandbytes' quantize_4bit on real keys and values, blocks of 64, every fourth token (README.md).

Its levels are float32, ours their four decimals, half a unit of the fourth apart at most; its absmax is float32, ours float16.
"""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.families.nf4 import LEVELS
from kvdelta.schemes.packing import unpack

from .comparing import FLOATS, HALF, INPUTS, assert_equal_but_near_bounds, load, side_of

GOLDEN = load("nf4")
EVERY = 4
DECIMALS = 0.5e-4

real = pytest.mark.parametrize("name", INPUTS)


def stored(name, spec="nf4"):
    """What is held of every fourth token, its codes, and the numbers in units of the reference's absmax."""
    x = INPUTS[name].float()[:, :, ::EVERY]
    held = parse_scheme(spec).sides[side_of(name)].quantizer.quantize(x)
    return held, unpack(held.codes, 4).view(x.shape), x / GOLDEN[f"absmax {name}"][..., None]


def test_levels():
    assert (torch.tensor(LEVELS) - GOLDEN["levels"]).abs().max() <= DECIMALS + FLOATS


@real
def test_scale(name):
    assert torch.equal(stored(name)[0].scale.flatten(), GOLDEN[f"absmax {name}"].half().flatten())


@real
def test_codes(name):
    """The rounding of the scale moves a number by 2⁻¹¹ of itself, that of the levels a boundary by 5e-5. As numbers lie in a unit
    of absmax with a density of about 1, and there are 15 boundaries: 15 · 2 · (5e-5 + 2⁻¹² in the mean) is under 1 % of them."""
    _, codes, at = stored(name)
    slack = HALF * at.abs() + DECIMALS + FLOATS
    assert assert_equal_but_near_bounds(codes, GOLDEN[f"codes {name}"], at, GOLDEN["levels"], slack) < 0.01


@real
def test_reads(name):
    held, codes, _ = stored(name)
    golden = GOLDEN[f"codes {name}"]
    theirs = GOLDEN["levels"][golden.int()]
    allowed = (HALF * theirs.abs() + DECIMALS + FLOATS) * GOLDEN[f"absmax {name}"][..., None]
    apart = (held.dequantize() - theirs * GOLDEN[f"absmax {name}"][..., None]).abs()
    assert (apart <= allowed)[codes == golden].all()


@real
def test_an_even_grid_and_a_mean_are_other_codes(name):
    golden = GOLDEN[f"codes {name}"]
    assert (stored(name, "nf4:asymmetric=true")[1] != golden).float().mean() > 0.1
    assert (stored(name, "asym4")[1] != golden).float().mean() > 0.5
