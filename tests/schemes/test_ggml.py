"""ggml's formats against the `gguf` package: its quantizers give the bytes, its decoder the numbers."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.ggml_blocks import IQ4_NL

FORMATS = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


def blocks():
    """Ordinary numbers, loud ones, ties, zeros and constants: [1, 2, 96, 64]."""
    x = torch.randn(1, 2, 96, 64) * torch.randn(1, 2, 96, 1).exp()
    x[..., 3] += 20
    x[:, :, 10] = 0
    x[:, :, 11] = -1.5
    x[:, :, 12] = torch.arange(64) / 8 - 4  # many halves
    x[:, :, 13] *= 1e-6
    x[:, :, 14, 0] = 6e4
    return x


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_equal_the_package(format):
    x = blocks()
    expected = quantize(x.numpy().reshape(-1, 64), GGMLQuantizationType[format.upper()])
    held = parse_scheme(format).key.quantizer.quantize(x)
    assert np.array_equal(held.blocks().numpy().reshape(expected.shape), expected)


@pytest.mark.parametrize("format", [*FORMATS, "iq4_nl"])
def test_decoded_as_the_package_decodes(format):
    held = parse_scheme(format).key.quantizer.quantize(blocks())
    expected = dequantize(
        held.blocks().numpy().reshape(-1, held.blocks().shape[-1]), GGMLQuantizationType[format.upper()]
    )
    assert np.array_equal(held.dequantize().numpy().reshape(expected.shape), expected)


def test_iq4_nl_takes_the_nearest_level():
    x = blocks()
    held = parse_scheme("iq4_nl").key.quantizer.quantize(x)
    levels = torch.tensor(IQ4_NL).float() * held.scale.float()[..., None]  # [1, 2, 96, 2, 1, 16]
    nearest = (levels - x.unflatten(-1, (-1, 32))[..., None]).abs().amin(-1).flatten(-2)
    assert torch.allclose((held.dequantize() - x).abs(), nearest, rtol=1e-5, atol=1e-7)


def test_iq4_nl_gains_from_its_scale():
    """Better than the nearest levels under ggml's starting scale, which puts the largest number at the first level."""
    x = torch.randn(1, 1, 512, 64)
    blocks = x.unflatten(-1, (-1, 32))
    start = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / IQ4_NL[0]
    levels = torch.tensor(IQ4_NL).float() * start[..., None]
    error = (levels - blocks[..., None]).abs().amin(-1).norm()
    assert (parse_scheme("iq4_nl").key.quantizer.quantize(x).dequantize() - x).norm() < error


@pytest.mark.parametrize("channels", [20, 80])
def test_heads_that_do_not_divide(channels):
    with pytest.raises(ValueError, match=f"{channels} channels do not divide into ggml's blocks of 32"):
        parse_scheme("q4_0").check(channels)
