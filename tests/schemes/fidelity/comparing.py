"""What the comparisons with references share: the inputs, the goldens, and where a code may differ."""

from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
HALF = 2.0**-11
"""The largest relative change that rounding to float16 makes."""
FLOATS = 2.0**-18
"""Allowed beside it for the order of float32 operations: a dozen, each at most 2⁻²⁴ of up to 4 times the number."""

TIES = 0.25
"""Of the norm of the error: how far what is read may be apart for codes at ties. One that goes to the other side moves by a step,
√12 times the error of a number; where 0.5 % do, that is √(0.5 % · 12)."""


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(HERE / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


INPUTS = load("inputs")


def side_of(name: str) -> str:
    return name.split(".")[1]


def assert_equal_but_for_ties(ours, golden, position, slack):
    """Whole numbers, rounded from `position`: equal, but where it is within `slack` of a tie, and there one apart. Returns the
    share of such places, of which nothing is said."""
    apart = (ours.long() - golden.long()).abs()
    near = ((position.double() % 1) - 0.5).abs() <= slack
    assert not apart[~near].any()
    assert apart.max() <= 1
    return near.float().mean().item()


def assert_equal_but_near_bounds(ours, golden, position, levels, slack):
    """Codes of uneven `levels`, the nearest to `position`: equal, but where it is within `slack` of the middle of two neighbours,
    and there one apart. Returns the share of codes that are not equal."""
    apart = ours.long() != golden.long()
    bounds = (levels[1:] + levels[:-1]).double() / 2
    lower = torch.minimum(ours, golden).long()
    assert ((ours.long() - golden.long()).abs() <= 1).all()
    assert ((position.double() - bounds[lower.clamp(max=len(bounds) - 1)]).abs() <= slack)[apart].all()
    return apart.float().mean().item()
