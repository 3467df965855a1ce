"""Fused kernels for CUDA, in Triton: what the torch code does in a dozen passes over memory, in one.

The torch code is the reference, and what runs wherever the kernels do not. Nothing here imports triton until a kernel
runs, and no file here imports a part of `schemes` that calls it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kvdelta.schemes.errors import UserError

SWITCH = "KVDELTA_KERNELS"
"""The environment variable: auto (the default), off, or always (small tensors too; and on a CPU, where only Triton's
interpreter runs them)."""
WORTH = 2**22
"""Numbers in a tensor from which on a kernel saves more time than its first call may cost."""

FEW = 32
"""Windows from which on compiling the kernels of a scheme, a second or two where Triton's cache on disk is cold, pays."""

_listeners: list[Callable[[str], None]] = []
_used: set[tuple] = set()


def available(device: torch.device, numbers: int) -> bool:
    """Whether a tensor of so many numbers is for the kernels."""
    asked = os.environ.get(SWITCH, "auto")
    if asked not in ("auto", "off", "always"):
        raise UserError(f"{SWITCH}={asked}: auto, off or always")
    if asked == "always":
        return True
    return asked == "auto" and not _resting and device.type == "cuda" and numbers >= WORTH and _triton_is_there()


_resting = False


@contextmanager
def for_windows(count: int, on_first_use: Callable[[str], None]) -> Iterator[None]:
    """While a run of so many windows goes on: of few, compiling would take longer than it saves, and the torch code runs.
    on_first_use: told the name of a kernel before it is compiled, or read from Triton's cache on disk."""
    global _resting
    _resting = count < FEW
    _listeners.append(on_first_use)
    try:
        yield
    finally:
        _resting = False
        _listeners.remove(on_first_use)


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def launch(kernel: Any, programs: int, *tensors: Tensor | float | None, warps: int = 4, **constants: Any) -> None:
    """Run `programs` programs of a kernel on the device of the first tensor. Products and sums stay apart, as torch
    rounds them: none is contracted into a fused multiply-add."""
    types = tuple(one.dtype for one in tensors if isinstance(one, Tensor))
    key = (kernel, types, *constants.items())
    if key not in _used:
        _used.add(key)
        for listener in _listeners:
            listener(kernel.__name__.strip("_"))
    first = tensors[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[(programs,)](*tensors, **constants, num_warps=warps, enable_fp_fusion=False)
