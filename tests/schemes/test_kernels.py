"""Every kernel against the torch code on a CPU, in Triton's interpreter, where triton is installed; and the switch.

Triton reads at import whether it interprets: these tests run in a process of their own, which `test_interpreted` starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvdelta.schemes import kernels, parse_scheme

from .kernel_cases import (
    DTYPES,
    EVENED,
    EXACT,
    SOLVED,
    assert_equal_parts,
    assert_equal_reads,
    both,
    check_evened,
    check_solved,
    hostile,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_interpreted, in a process of its own")
ROOT = Path(__file__).parent.parent.parent
SIDES = ("key", "value")


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@pytest.fixture
def used(monkeypatch):
    """Names of the kernels that were launched."""
    names = []
    from kvdelta.schemes.kernels import affine, evening, rotation

    launch = kernels.launch
    monkeypatch.setattr(affine, "TILE", 8192)  # few programs and large ones, which the interpreter has sooner
    monkeypatch.setattr(affine, "SMALL", 8192)

    def counted(kernel, *args, **constants):
        names.append(kernel.__name__)
        launch(kernel, *args, **constants)

    for module in (affine, evening, rotation):
        monkeypatch.setattr(module, "launch", counted)
    return names


pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow")  # numpy's


@interpreted
@pytest.mark.parametrize("spec", EXACT)
def test_equal_bytes(spec, monkeypatch, used):
    for dtype, side in zip(DTYPES, (*SIDES, "key"), strict=True):
        quantizer = parse_scheme(spec).sides[side].quantizer
        x = hostile(spec, dtype, "cpu")
        assert_equal_parts(*both(quantizer, x, monkeypatch))
        held = quantizer.quantize(x)
        assert_equal_reads(held, monkeypatch, exactly=dtype != torch.bfloat16)
    assert_equal_reads(held.crop(held.tokens - 2), monkeypatch)
    assert {"_encode", "_decode"} <= set(used)
    assert ("_hadamard" in used) == any(name in spec for name in ("hadamard", "oscar", "turboquant-vllm", "exllamav3"))


@interpreted
@pytest.mark.parametrize("spec", SOLVED)
def test_solved(spec, monkeypatch, used):
    for dtype in DTYPES:
        x = hostile(spec, dtype, "cpu")
        quantizer = parse_scheme(spec).key.quantizer
        check_solved(quantizer, x, monkeypatch)
        assert_equal_reads(quantizer.quantize(x), monkeypatch, exactly=dtype != torch.bfloat16)
    assert "_encode" in used


@interpreted
@pytest.mark.parametrize("spec", EVENED)
def test_evened(spec, monkeypatch, used):
    for side in SIDES:
        check_evened(parse_scheme(spec).sides[side].quantizer, hostile(spec, torch.float16, "cpu"), monkeypatch)
    assert used.count("_even_out") == 2


@interpreted
@pytest.mark.parametrize("channels", [32, 80, 128])
@pytest.mark.parametrize(
    "spec", ["asym3:axis=channel,group_size=32", "asym4:group_size=all", "asym4", "hadamard(asym4)", "kvarn:tile=16"]
)
def test_other_widths(spec, channels, monkeypatch):
    """80 channels are no power of two: groups along tokens have a kernel all the same, the others the torch code."""
    x = hostile(spec, torch.float16, "cpu", channels=channels)
    assert_equal_parts(*both(parse_scheme(spec).key.quantizer, x, monkeypatch))


@interpreted
def test_any_layout_of_the_input(monkeypatch):
    for spec in ("asym4", "asym2:axis=channel,group_size=32", "hadamard(asym4)"):
        x = hostile(spec, torch.float16, "cpu", heads=2).transpose(0, 1)
        assert not x.is_contiguous()
        assert_equal_parts(*both(parse_scheme(spec).key.quantizer, x, monkeypatch))


@interpreted
def test_a_first_use_is_told_once(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "always")
    monkeypatch.setattr(kernels, "_used", set())
    told = []
    monkeypatch.setattr(kernels, "_listeners", [told.append])
    for _ in range(2):
        parse_scheme("asym4").key.quantizer.quantize(torch.ones(1, 1, 2, 64)).dequantize()
    assert told == ["encode", "decode"]


@interpreted
def test_tokens_that_do_not_fill_a_group_are_refused(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "always")
    for spec in ("kivi2", "kvarn", "oscar"):
        with pytest.raises(ValueError, match="33 tokens do not divide"):
            parse_scheme(spec).key.quantizer.quantize(torch.randn(1, 1, 33, 64))


CUDA, CPU, MANY = torch.device("cuda"), torch.device("cpu"), kernels.WORTH


@pytest.mark.parametrize(
    ("asked", "device", "numbers", "expected"),
    [
        ("auto", CUDA, MANY, True),
        ("auto", CUDA, MANY - 1, False),
        ("auto", CPU, MANY, False),
        ("off", CUDA, MANY, False),
        ("always", CUDA, 1, True),
        ("always", CPU, 1, True),
    ],
)
def test_the_switch(asked, device, numbers, expected, monkeypatch):
    monkeypatch.setattr(kernels, "_triton_is_there", lambda: True)
    monkeypatch.setenv(kernels.SWITCH, asked)
    assert kernels.available(device, numbers) is expected


def test_without_triton_and_with_a_misspelt_switch(monkeypatch):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels, "_triton_is_there", lambda: False)
    assert not kernels.available(CUDA, MANY)
    monkeypatch.setenv(kernels.SWITCH, "on")
    with pytest.raises(ValueError, match="KVDELTA_KERNELS=on: auto, off or always"):
        kernels.available(CUDA, MANY)


def test_schemes_do_not_import_triton():
    code = "import sys, kvdelta.schemes.registry, kvdelta.schemes.store; kvdelta.schemes.registry.parse_scheme('kvarn')\nprint('kvdelta.schemes.kernels.affine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
