"""ggml's formats, bare and behind llama.cpp's rotation, against ggml's own block functions on real keys and values.

The goldens are bytes of blocks (README.md). Bare q6_0 and iq4_nl: equal codes; a scale that is a quotient of sums
may be the next float16, since C adds one number after the other. Behind the rotation each rotated number is a sum of 64
or 128 products in another order, some 1e-6 of the largest apart: a code moves where it lay that near to a boundary. With at most
64 codes between two numbers of a block that is a chance of 64·1e-6, or one code in 10,000; 1 in 1,000 is allowed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quantize

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.ggml_blocks import GGMLTensor

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "inputs.npz")
GOLDENS = np.load(HERE / "ggml.npz")
EVERY = 16  # the goldens have each sixteenth token


def real(name, every=EVERY, wide=False):
    """Real numbers in float32; wide: two heads side by side, as one of 128 channels."""
    x = torch.from_numpy(INPUTS[name][:, :, ::every]).float()
    return torch.cat([x[:, :1], x[:, 1:]], dim=-1) if wide else x


def held(spec, name, x):
    stored = parse_scheme(spec).sides[name.split(".")[1]].quantizer.quantize(x)
    blocks = getattr(stored, "inner", stored)
    assert isinstance(blocks, GGMLTensor)
    return blocks


def differences(blocks, golden):
    """The share of codes, and the largest difference of scales and minima in steps of float16."""
    size = blocks.codes.shape[-1]
    ours = blocks.blocks().numpy().reshape(*blocks.codes.shape[:-1], -1)
    theirs = golden.reshape(ours.shape)
    steps = [np.ascontiguousarray(one[..., :-size]).view(np.int16).astype(int) for one in (ours, theirs)]
    return (ours[..., -size:] != theirs[..., -size:]).mean(), np.abs(steps[0] - steps[1]).max()


@pytest.mark.parametrize("key", [key for key in GOLDENS if "llama" not in key])
def test_codes_of_the_cache_kernels(key):
    format, name = key.split(" ")
    spec = "iq4_nl:codes=first" if format == "iq4_nl" else format
    codes, scale = differences(held(spec, name, real(name)), GOLDENS[key])
    assert codes == 0
    assert scale <= (1 if format == "iq4_nl" else 0)


@pytest.mark.parametrize("key", [key for key in GOLDENS if "llama" in key])
def test_llama_cpp_rotates_first(key):
    wide, (spec, name) = key.startswith("wide"), key.removeprefix("wide ").split(" ")
    codes, scale = differences(held(spec, name, real(name, wide=wide)), GOLDENS[key])
    assert codes <= 1e-3
    assert scale <= 1


def test_what_a_wrong_rotation_would_do():
    """Unrotated, over another width, or with ggml's first codes forgotten: most codes are others."""
    name = "qwen.key"
    rotated, wide = GOLDENS[f"llama.cpp:type=q4_0 {name}"], GOLDENS[f"wide llama.cpp:type=q4_0 {name}"]
    assert differences(held("q4_0", name, real(name)), rotated)[0] > 0.1
    values = parse_scheme("llama.cpp:type=q4_0").value.quantizer.quantize(real(name, wide=True)).inner
    assert differences(values, wide)[0] > 0.1
    assert differences(held("iq4_nl", name, real(name)), GOLDENS[f"iq4_nl {name}"])[0] > 0.01


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("format", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_bare_formats_are_the_packages(format, name):
    x = real(name, 1)
    expected = quantize(x.numpy().reshape(-1, 64), GGMLQuantizationType[format.upper()])
    assert np.array_equal(held(format, name, x).blocks().numpy().reshape(expected.shape), expected)


@pytest.mark.parametrize(("channels", "turned"), [(32, False), (96, False), (128, True), (192, True)])
def test_which_heads_are_rotated(channels, turned):
    """Those whose width 64 divides; keys over the largest power of two in it, values over 64."""
    x = torch.randn(1, 1, 4, channels)
    for side, scheme in parse_scheme("llama.cpp:type=q8_0").sides.items():
        bare = parse_scheme("q8_0").sides[side].quantizer.quantize(x)
        stored = scheme.quantizer.quantize(x)
        assert torch.equal(stored.inner.codes, bare.codes) != turned
        assert stored.width == (0 if not turned else 64 if side == "value" or channels == 192 else 128)
