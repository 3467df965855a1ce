"""TurboQuant against a float64 transcription of the paper, and vLLM's presets against its kernels' arithmetic.

Goldens, of every 32nd token (README.md): decoded numbers, and codes of vLLM's. Where all codes of a token agree, its
decoded numbers differ by the rounding of a float16 norm, 2⁻¹¹ relative, and of levels given with four digits, 5e-5: 6e-4
together. Codes may differ where a number lies that near to a boundary between levels: with 15 boundaries, a density under 0.4
and 64 numbers that is one token in ten at most. vLLM's own levels are off by up to 0.002, so boundaries by 0.001: 15 · 0.2 ·
0.001 = 0.3 % of codes. Its values are coded before scale and minimum are rounded: 2⁻¹² of at most 15 steps, on both sides of a
boundary, 1 % of codes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "inputs.npz")
GOLDENS = np.load(HERE / "turboquant.npz")
EVERY = 32


def stored(spec, name):
    x = torch.from_numpy(INPUTS[name]).float()
    return parse_scheme(spec).sides[name.split(".")[1]].quantizer.quantize(x)


def apart(spec, golden, correct=""):
    """Of each token the relative distance between our numbers and the golden's, over all inputs."""
    distances = []
    for name in INPUTS:
        if f"{golden} {name}" in GOLDENS:
            theirs = torch.from_numpy(GOLDENS[f"{golden} {name}"])
            ours = stored(spec + correct, name).dequantize()[:, :, ::EVERY]
            distances.append((ours - theirs).norm(dim=-1).flatten() / theirs.norm(dim=-1).flatten())
    return torch.cat(distances)


@pytest.mark.parametrize("bits", ["1", "2", "2.5", "3", "3.5", "4"])
def test_algorithm_1_and_its_two_widths(bits):
    distances = apart(f"turboquant:bits={bits}", f"turboquant:bits={bits}")
    assert (distances <= 6e-4).float().mean() >= 0.9
    assert distances.max() <= 0.25  # the gap of two levels over √64, a code or two in a token


@pytest.mark.parametrize("key", [key for key in GOLDENS if key.startswith("codes")])
def test_codes_of_vllms_presets(key):
    _, spec, name = key.split(" ")
    held = stored(spec, name)
    inner = getattr(held, "inner", held)
    codes = unpack(inner.codes, inner.bits)[:, :, ::EVERY].numpy().astype(int)
    assert (codes != GOLDENS[key]).mean() <= (0.005 if "key" in spec else 0.01)
    assert np.abs(codes - GOLDENS[key]).max() <= 1


@pytest.mark.parametrize("bits", [3, 4])
def test_norms_of_vllms_keys(bits):
    """Their norm is the token's, which half a step of float16 and nothing else moves."""
    distances = apart(f"turboquant-vllm:key_bits={bits}", f"turboquant-vllm:key_bits={bits}")
    assert (distances <= 2e-3).float().mean() >= 0.9  # levels that are 0.1 % off
    assert (
        apart("turboquant-vllm", f"turboquant-vllm:key_bits={bits}", f":key_bits={bits},correct_norm=false") > 2e-3
    ).any()


def test_what_wrong_settings_would_do():
    assert apart("turboquant:bits=2,seed=1", "turboquant:bits=2").min() > 0.1
    assert apart("turboquant:bits=2", "turboquant:bits=2.5").min() > 0.01
    assert apart("turboquant:bits=2.5,block=64", "turboquant:bits=2.5").max() > 0.25  # other channels are loud
    signed = stored("turboquant:bits=4,rotation=hadamard", "qwen.key").inner.codes[:, :, ::EVERY]
    assert (unpack(signed, 4).numpy() != GOLDENS["codes turboquant-vllm:key_bits=4 qwen.key"]).mean() > 0.5


def test_a_quarter_of_the_channels_is_wider():
    held = stored("turboquant:bits=2.5", "qwen.key")
    assert held.places.shape[-1] == 16
    assert (held.loud.inner.bits, held.others.inner.bits) == (3, 2)
    means = torch.from_numpy(INPUTS["qwen.key"]).float().abs().unflatten(2, (-1, 128)).mean(3)
    places = held.places.long()
    others = means.scatter(-1, places, 0.0)
    assert (means.gather(-1, places).amin(-1) >= others.amax(-1)).all()
