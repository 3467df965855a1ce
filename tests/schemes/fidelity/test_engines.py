"""Names of engines against the arithmetic of vLLM's and SGLang's own code on real keys and values.

Goldens: codes of every 32nd token (README.md). Ours are taken with a float16 scale, theirs with a float32 one: a
position moves by 2⁻¹² of at most 15 steps (int4), or relative to itself (fp8, whose steps are 2⁻³ of it); on both sides of a
boundary that is 1 % of codes at most. SGLang's powers of two are exact, so only ties may differ.
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
GOLDENS = np.load(HERE / "engines.npz")
EVERY = 32

real = pytest.mark.parametrize("name", list(INPUTS))


def stored(spec, name):
    x = torch.from_numpy(INPUTS[name]).float()[:, :, ::EVERY]
    return parse_scheme(spec).sides[name.split(".")[1]].quantizer.quantize(x)


def codes(held):
    inner = getattr(held, "inner", held)
    return unpack(inner.codes, inner.bits).numpy().astype(int)


@real
def test_int4_per_token_head(name):
    held = stored("vllm/int4_per_token_head", name)
    apart = codes(held) - GOLDENS[f"vllm/int4_per_token_head {name}"]
    assert (apart != 0).mean() <= 0.01
    assert np.abs(apart).max() <= 1
    theirs = torch.from_numpy(GOLDENS[f"decoded vllm/int4_per_token_head {name}"])
    distance = (held.dequantize() - theirs).norm() / theirs.norm()
    assert distance <= 0.02  # 1 % of codes by a step that is about 0.3 of the root mean square
    plain = stored("asymmetric:bits=4,group_size=all,zero=integer", name)
    assert (codes(plain) != GOLDENS[f"vllm/int4_per_token_head {name}"]).mean() > 0.5  # the rotation does that


@real
def test_int8_per_token_head_is_rounded_where_vllm_cuts(name):
    ours, theirs = codes(stored("vllm/int8_per_token_head", name)) - 127, GOLDENS[f"vllm/int8_per_token_head {name}"]
    assert np.abs(ours - theirs).max() <= 1
    assert (np.abs(ours) < np.abs(theirs.astype(int))).mean() <= 0.01
    assert 0.3 < (ours != theirs).mean() < 0.6  # half of all numbers are nearer to the next one


@real
def test_fp8_per_token_head(name):
    ours = stored("vllm/fp8_per_token_head", name).codes.reshape(GOLDENS[f"vllm/fp8_per_token_head {name}"].shape)
    assert (ours.numpy() != GOLDENS[f"vllm/fp8_per_token_head {name}"]).mean() <= 0.01


@real
def test_sglangs_fp4(name):
    held = stored("sglang/fp4_e2m1", name)
    assert np.array_equal(held.scale.view(torch.uint8).numpy(), GOLDENS[f"scale sglang/fp4_e2m1 {name}"])
    levels = torch.tensor(LEVELS)[torch.from_numpy(codes(held))]
    theirs = torch.from_numpy(GOLDENS[f"sglang/fp4_e2m1 {name}"]).float()
    x, other = torch.from_numpy(INPUTS[name]).float()[:, :, ::EVERY], levels != theirs
    middle = (levels + theirs) / 2 * held.scale.float().repeat_interleave(16, dim=-1)
    assert torch.equal(x[other], middle[other])
    assert (stored("mxfp4:rule=floor,group_size=16", name).scale.float() != held.scale.float()).any()
