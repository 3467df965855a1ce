"""KIVI's quantizers against what the published reference gives, to the tolerance stated beside the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

GOLDEN = Path(__file__).parents[3] / "shared" / "goldens" / "kivi.npz"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"{GOLDEN.name} is not committed and is absent here")


def ulp16(x):
    return torch.exp2(x.abs().clamp(min=2.0**-14).log2().floor() - 10)


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [32, 64])
def test_golden(side, bits, group_size):
    stored = np.load(GOLDEN)
    x = torch.from_numpy(stored[f"{side}s"])
    golden = torch.from_numpy(stored[f"{side}s_dequantized_bits{bits}_group{group_size}"])

    scheme = parse_scheme(f"kivi:bits={bits},group_size={group_size}").sides[side]
    held = scheme.quantizer.quantize(x)
    codes = unpack(held.codes, bits)
    if side == "key":
        codes = codes.view(1, 2, -1, 64, group_size)  # [batch, heads, token groups, channels, group]

    def split(values):
        if side == "key":
            return values.unflatten(2, (-1, group_size)).movedim(3, -1).float()
        return values.unflatten(3, (-1, group_size)).float()

    # the reference rounds range and scale to float16, one after the other
    low, high = split(x).aminmax(dim=-1, keepdim=True)
    scale = ((high - low).half() / (2**bits - 1)).float()
    at = (split(x) - low) / scale
    golden_codes = ((split(golden) - low) / scale).round()
    codes = codes.view(golden_codes.shape)

    differ = codes != golden_codes
    assert differ.float().mean() <= 0.005
    assert (codes - golden_codes).abs().max() <= 1
    assert ((at % 1 - 0.5).abs()[differ] <= 0.02).all()
    # 2 ulps of the largest number in the group's arithmetic, its range, and what the other rounding of scale adds
    own_scale = held.scale.float().unsqueeze(-1)
    allowed = (
        2 * ulp16(torch.maximum(high - low, torch.maximum(high.abs(), low.abs()))) + codes * (scale - own_scale).abs()
    )
    error = (split(golden) - split(held.dequantize())).abs()
    assert (error <= allowed)[~differ].all()
