"""The Hadamard rotation of heads of 2^n channels: one pass over memory."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvdelta.schemes.kernels import launch, power_of_two

TILE = 4096  # numbers of a program
WIDEST = 1024


@triton.jit
@no_type_check
def _hadamard(
    x, out, signs, rows, BACK: tl.constexpr, FACTOR: tl.constexpr, LIMIT: tl.constexpr, WIDTH: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    at = row[:, None] * WIDTH + channel[None, :]
    inside = (row < rows)[:, None]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if signs is not None and not BACK:
        values = values * tl.load(signs + channel)[None, :]
    # neighbours are added and subtracted, sums moved before differences: after `STEPS` such steps every number is in its
    # place again, and has seen the additions of the torch code in their order
    for _ in tl.static_range(STEPS):
        first, second = tl.split(tl.reshape(values, [ROWS, WIDTH // 2, 2]))
        values = tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 2, 1)), [ROWS, WIDTH])
    values = values * FACTOR
    if signs is not None and BACK:
        values = values * tl.load(signs + channel)[None, :]
    values = tl.minimum(tl.maximum(values, -LIMIT), LIMIT) if LIMIT > 0 else values
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def works(channels: int) -> bool:
    return power_of_two(channels) and 2 <= channels <= WIDEST


def hadamard(x: Tensor, signs: Tensor | None, back: bool, dtype: torch.dtype | None = None) -> Tensor:
    """x H after (`back`: before) the signs, in float32; or clamped to what `dtype` can hold, and of that type."""
    channels = x.shape[-1]
    out = torch.empty(x.shape, dtype=dtype or torch.float32, device=x.device)
    rows = max(1, TILE // channels)
    launch(
        _hadamard, triton.cdiv(x.numel() // channels, rows),
        x.contiguous(), out, signs, x.numel() // channels,
        BACK=back, FACTOR=channels**-0.5, LIMIT=torch.finfo(dtype).max if dtype else 0, WIDTH=channels,
        STEPS=channels.bit_length() - 1, ROWS=rows,
    )  # fmt: skip
    return out
