"""Loss, KL and top-1 agreement of rows of logits in one CUDA kernel (Triton): each row is read twice, nothing is written
but three numbers. `harness.scoring` holds the same in torch, which is the reference."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from harness.divergence import FAR
from schemes import kernels

BLOCK = 4096  # numbers of a row at a time
SERIES = 0.125  # |δ| below which expm1(δ) − δ is summed as a series: exp(δ) − 1 − δ would cancel


def runs_on(x: Tensor) -> bool:
    """Where the kernels of schemes run, for numbers that are computed with in float32."""
    return x.dtype != torch.float64 and kernels.available(x.device, x.numel())


def score(
    logits: Float[Tensor, "batch scored vocabulary"],
    reference: Float[Tensor, "batch scored vocabulary"],
    targets: Int64[Tensor, "batch scored"],
) -> Float[Tensor, "3 batch scored"]:
    """NLL, KL(reference ‖ logits) and whether the largest are the same, of each row."""
    batch, scored, vocabulary = logits.shape
    assert logits.stride(2) == reference.stride(2) == 1
    out = torch.empty(3, batch, scored, device=logits.device)
    _kernel()[(batch * scored,)](
        logits, reference, targets.contiguous(), out, scored, batch * scored,
        logits.stride(0), logits.stride(1), reference.stride(0), reference.stride(1),
        vocabulary, FAR, SERIES, BLOCK,
        num_warps=8,
    )  # fmt: skip
    return out


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    def rows(
        q_at, p_at, targets, out, scored, total,
        q_window, q_row, p_window, p_row,
        vocabulary: tl.constexpr, far: tl.constexpr, series: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        q_at += row // scored * q_window + row % scored * q_row
        p_at += row // scored * p_window + row % scored * p_row
        lowest = -float("inf")
        q_max, q_sum, q_top = lowest, 0.0, 0
        p_max, p_sum, p_top = lowest, 0.0, 0
        for start in range(0, vocabulary, block):
            at = start + tl.arange(0, block)
            q = tl.load(q_at + at, mask=at < vocabulary, other=lowest).to(tl.float32)
            p = tl.load(p_at + at, mask=at < vocabulary, other=lowest).to(tl.float32)
            here = tl.max(q, 0)
            q_top = tl.where(here > q_max, start + tl.argmax(q, 0), q_top)
            larger = tl.maximum(here, q_max)
            q_sum = q_sum * tl.exp(q_max - larger) + tl.sum(tl.exp(q - larger), 0)
            q_max = larger
            here = tl.max(p, 0)
            p_top = tl.where(here > p_max, start + tl.argmax(p, 0), p_top)
            larger = tl.maximum(here, p_max)
            p_sum = p_sum * tl.exp(p_max - larger) + tl.sum(tl.exp(p - larger), 0)
            p_max = larger
        q_log, p_log = q_max + tl.log(q_sum), p_max + tl.log(p_sum)
        kl = 0.0
        for start in range(0, vocabulary, block):
            at = start + tl.arange(0, block)
            log_q = tl.load(q_at + at, mask=at < vocabulary, other=0.0).to(tl.float32) - q_log
            log_p = tl.load(p_at + at, mask=at < vocabulary, other=0.0).to(tl.float32) - p_log
            d = log_q - log_p
            near = tl.minimum(d, far)
            short = near * near * (0.5 + near * (1 / 6 + near * (1 / 24 + near * (1 / 120 + near * (1 / 720)))))
            term = tl.where(tl.abs(d) < series, short, tl.exp(near) - 1.0 - near) * tl.exp(log_p)
            kl += tl.sum(tl.where(at < vocabulary, tl.where(d > far, tl.exp(log_q), term), 0.0), 0)
        target = tl.load(q_at + tl.load(targets + row)).to(tl.float32)
        tl.store(out + row, q_log - target)
        tl.store(out + total + row, kl)
        tl.store(out + 2 * total + row, tl.where(q_top == p_top, 1.0, 0.0))

    jit: Any = triton.jit
    # not compiled again for a number of rows that happens to be a multiple of 16
    return jit(rows, do_not_specialize=["scored", "total"])
