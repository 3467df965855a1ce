"""PolarQuant's keys against the published quantize_and_pack_nbit on real keys (README.md), every 32nd token.

Its codes are taken with scale and minimum in float32, ours with what is stored. Where they differ, the number lies no further
from the boundary than float16 moves that: 2⁻¹¹ of the offset, and of the scale for each of 2^b steps.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "inputs.npz")
GOLDENS = np.load(HERE / "polarquant.npz")
EVERY, GROUP = 32, 128


def stored(spec, name):
    return parse_scheme(spec).key.quantizer.quantize(torch.from_numpy(INPUTS[name]).float())


def codes(part):
    """[1, heads, tokens, pairs], of every token."""
    return unpack(part.codes, part.bits).unflatten(-1, (-1, GROUP)).transpose(-1, -2).flatten(2, 3).double()


@pytest.mark.parametrize("key", [key for key in GOLDENS if key.startswith("polarquant")])
def test_codes_and_what_is_rebuilt(key):
    spec, name = key.split(" ")
    held = stored(spec, name)
    first, second = torch.from_numpy(INPUTS[name]).double().chunk(2, dim=-1)
    values = {"radius": torch.hypot(first, second), "angle": torch.atan2(second, first) % (2 * torch.pi)}
    for what, part in (("radius", held.radius), ("angle", held.angle)):
        scale, offset = (
            one.double().repeat_interleave(GROUP, dim=2)[:, :, ::EVERY] for one in (part.scale, part.offset)
        )
        ours, theirs = codes(part)[:, :, ::EVERY], torch.from_numpy(GOLDENS[f"{what} {key}"]).double()
        boundary = ((values[what][:, :, ::EVERY] - offset) / scale - (ours + theirs) / 2).abs()
        moved = 2.0**-11 * (offset / scale + 2**part.bits) + 1e-6
        assert (boundary <= moved)[ours != theirs].all()
        assert (ours != theirs).double().mean() <= 0.1
    theirs = torch.from_numpy(GOLDENS[key])
    assert (held.dequantize()[:, :, ::EVERY] - theirs).norm() <= 0.01 * theirs.norm()


def test_what_wrong_settings_would_do():
    golden = torch.from_numpy(GOLDENS["polarquant:radius_bits=4,angle_bits=2 smollm2.key"])
    for spec in ("polarquant:radius_bits=2,angle_bits=4", "polarquant:radius_bits=4,angle_bits=2,group_size=64"):
        assert (stored(spec, "smollm2.key").dequantize()[:, :, ::EVERY] - golden).norm() > 0.1 * golden.norm()
