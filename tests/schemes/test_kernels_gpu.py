"""The kernels on a CUDA device against the torch code there, and that no pass waits for the device."""

import pytest
import torch

from kvdelta.schemes import kernels, parse_scheme

from .cases import NESTED_CASES, PLAIN_CASES, rebuild, sample
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

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SIDES = ("key", "value")


@pytest.mark.parametrize("spec", EXACT)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bytes(spec, dtype, monkeypatch):
    for side in SIDES:
        quantizer = parse_scheme(spec).sides[side].quantizer
        x = hostile(spec, dtype, "cuda", heads=2)
        assert_equal_parts(*both(quantizer, x, monkeypatch))
        held = quantizer.quantize(x)
        assert_equal_reads(held, monkeypatch)
        assert_equal_reads(held.crop(held.tokens - 2), monkeypatch)


@pytest.mark.parametrize("spec", SOLVED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_solved(spec, dtype, monkeypatch):
    x = hostile(spec, dtype, "cuda", heads=2)
    quantizer = parse_scheme(spec).key.quantizer
    check_solved(quantizer, x, monkeypatch)
    assert_equal_reads(quantizer.quantize(x), monkeypatch)


@pytest.mark.parametrize("spec", EVENED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evened(spec, dtype, monkeypatch):
    for side in SIDES:
        check_evened(parse_scheme(spec).sides[side].quantizer, hostile(spec, dtype, "cuda", heads=2), monkeypatch)


def test_on_by_default_for_many_numbers(monkeypatch):
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    told = []
    monkeypatch.setattr(kernels, "_used", set())
    monkeypatch.setattr(kernels, "_listeners", [told.append])
    quantizer = parse_scheme("asym4").key.quantizer
    quantizer.quantize(torch.zeros(1, 1, 2**16, 32, device="cuda"))
    assert told == []
    quantizer.quantize(torch.zeros(1, 1, 2**16, 64, device="cuda")).dequantize()
    assert told == ["encode", "decode"]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("switch", ["off", "always"])
@pytest.mark.parametrize("scheme", [*PLAIN_CASES, *NESTED_CASES])
def test_no_pass_waits_for_the_device(scheme, switch, monkeypatch):
    """After a first pass, which brings tables and compiles. The `hqq` package itself compares errors on the host."""
    if "PackageSolver" in repr(scheme):
        pytest.skip("the package waits")
    monkeypatch.setenv(kernels.SWITCH, switch)
    x = sample(scheme, torch.float16).cuda()
    rebuild(scheme.quantizer, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rebuild(scheme.quantizer, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
