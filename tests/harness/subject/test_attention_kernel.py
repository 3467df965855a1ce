"""The kernel of short steps against softmax in float64: in Triton's interpreter on a CPU, compiled on a GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from kvdelta.harness.subject import attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CASES = [  # batch, query heads, KV heads, queries, keys, channels
    (2, 9, 3, 16, 150, 64),
    (1, 14, 2, 16, 64, 64),
    (3, 4, 2, 5, 6, 32),
    (1, 8, 1, 16, 129, 128),
    (2, 6, 2, 2, 1, 16),
]
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def check(case, dtype, device):
    batch, heads, kv_heads, queries, past, channels = case
    keys = past + queries
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, queries, heads, channels, generator=generator).to(device, dtype).transpose(1, 2)
    room = 3 * torch.randn(2, batch, kv_heads, keys + 7, channels, generator=generator).to(device, dtype)
    key, value = room[:, :, :, :keys]  # as a cache has them: part of a buffer whose rest must not be read
    room[:, :, :, keys:] = torch.nan

    from kvdelta.harness.subject import attention_kernel

    assert attention_kernel.takes(query, key, value)
    found = attention_kernel.attend(query, key, value, 0.3)
    shared = heads // kv_heads
    wide = [x.double().repeat_interleave(shared, dim=1) for x in (key, value)]
    scores = 0.3 * query.double() @ wide[0].mT
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = (p @ wide[1]).transpose(1, 2)
    # relative to the sum of what is added: probabilities and results are rounded once each; a score, in float32, by its
    # size, which is an error of the exponent
    summed = (p @ wide[1].abs()).transpose(1, 2)
    loose = 2 * EPSILON[dtype] + EPSILON[torch.float32] * (8 + 4 * scores.abs().max())
    assert ((found.double() - expected).abs() <= loose * summed).all()
    assert found.dtype == dtype


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"{2 * len(CASES) + 1} passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="run by test_interpreted, in a process of its own")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, dtype):
    check(case, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, (64, 9, 3, 16, 2032, 64)])
def test_compiled(case, dtype):
    check(case, dtype, "cuda")


def test_what_it_does_not_take():
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    from kvdelta.harness.subject import attention_kernel

    def tensors(heads=4, kv_heads=2, queries=4, keys=9, channels=32, value_channels=32):
        return (
            torch.zeros(1, heads, queries, channels),
            torch.zeros(1, kv_heads, keys, channels),
            torch.zeros(1, kv_heads, keys, value_channels),
        )

    assert attention_kernel.takes(*tensors())
    for other in (
        {"heads": 32, "kv_heads": 1, "queries": 5},
        {"channels": 96, "value_channels": 96},
        {"value_channels": 16},
    ):
        assert not attention_kernel.takes(*tensors(**other))
    assert attention.SHORT >= 16
