"""4-bit floats against torchao, MLX's grid against mlx.core.quantize, ExLlamaV3's cells against its kernels' arithmetic.

Goldens, of every 32nd token (README.md): scales as bytes, and levels or codes. The floats are equal but for ties,
which are checked to be ties. MLX and ExLlamaV3 take codes before they round the scale (and the end) to float16, we after:
a position moves by 2⁻¹² of up to 2^b steps, and, for the end, by 2⁻¹² of |end|/scale steps, at most as many again. It crosses a boundary
with twice that chance, on both sides: 2^b · 2⁻¹⁰ of codes, 0.4 % at 4 bits; 1/4 at 8 bits, where a tenth is allowed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.e2m1 import LEVELS
from kvdelta.schemes.packing import unpack

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "inputs.npz")
GOLDENS = np.load(HERE / "floats.npz")
EVERY = 32
LEAST = 0x08  # the byte of 2⁻⁶: torchao lets no scale of NVFP4 be smaller


def stored(spec, name, dtype=torch.float32):
    """What is held of all tokens, and its codes of each 32nd."""
    x = torch.from_numpy(INPUTS[name]).to(dtype)
    held = parse_scheme(spec).sides[name.split(".")[1]].quantizer.quantize(x)
    inner = getattr(held, "inner", held)
    return held, inner, unpack(inner.codes, inner.bits)[:, :, ::EVERY]


@pytest.mark.parametrize("key", [key.removeprefix("scale ") for key in GOLDENS if key.startswith("scale")])
def test_four_bit_floats(key):
    spec, name = key.split(" ")
    held, inner, codes = stored(spec, name)
    expected = GOLDENS[f"scale {key}"]
    normal = expected > LEAST if spec == "nvfp4" else np.ones(expected.shape, bool)
    scale = inner.scale.view(torch.uint8)[:, :, ::EVERY].numpy()
    assert np.array_equal(scale[normal], expected[normal])
    assert normal.mean() > (0.1 if name == "qwen.value" else 0.9)
    levels = torch.tensor(LEVELS)[codes.int()]
    theirs = torch.from_numpy(GOLDENS[key]).float()
    other = (levels != theirs) & torch.from_numpy(normal).repeat_interleave(inner.grouping.group_size, dim=-1)
    assert other.float().mean() <= 0.01
    x = torch.from_numpy(INPUTS[name]).float()
    steps = inner.scale.float().repeat_interleave(inner.grouping.group_size, dim=-1)
    if spec == "nvfp4:scales=2":
        steps = steps * held.second.repeat_interleave(128, dim=2)[..., None]
    middle = (levels + theirs) / 2 * steps[:, :, ::EVERY]
    assert torch.allclose(x[:, :, ::EVERY][other], middle[other], rtol=1e-6)


@pytest.mark.parametrize("key", [key.removeprefix("codes ") for key in GOLDENS if key.startswith("codes")])
def test_grids(key):
    spec, name = key.split(" ")
    held, inner, codes = stored(spec, name, torch.float16)
    apart = codes.numpy().astype(int) - GOLDENS[f"codes {key}"]
    assert (apart != 0).mean() <= min(0.1, 2**inner.bits / 1024)
    assert np.abs(apart).max() <= 1
    rebuilt, theirs = held.dequantize()[:, :, ::EVERY].float().numpy(), GOLDENS[key].astype(np.float32)
    same = (apart == 0).all(-1)
    size = np.abs(theirs[same]).max(-1, keepdims=True)
    assert (
        np.abs(rebuilt[same] - theirs[same]) <= 3e-3 * size
    ).all()  # three numbers of float16, and up to 2^b steps of one


@pytest.mark.parametrize(
    ("wrong", "right"), [("mxfp4:rule=floor", "mxfp4:rule=rceil"), ("mxfp4:rule=even", "mxfp4:rule=floor")]
)
def test_rules_are_not_the_same(wrong, right):
    scales = stored(wrong, "smollm2.key")[1].scale.view(torch.uint8)[:, :, ::EVERY].numpy()
    assert (scales != GOLDENS[f"scale {right} smollm2.key"]).any()


def test_what_wrong_grids_would_do():
    codes = stored("asym4", "smollm2.key", torch.float16)[2].numpy()
    assert (codes != GOLDENS["codes mlx:bits=4 smollm2.key"]).mean() > 0.1
    codes = stored("hadamard(int4:group_size=32)", "smollm2.key", torch.float16)[2].numpy()
    assert (codes != GOLDENS["codes exllamav3:bits=4 smollm2.key"]).mean() > 0.1
