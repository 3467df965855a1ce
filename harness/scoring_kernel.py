"""Loss, KL, TVD and top-1 agreement of rows of logits in one kernel (Triton): each row is read twice, nothing is written but
four numbers. `harness.scoring` holds the same in torch, which is the reference."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from kvdelta.harness.divergence import FAR
from kvdelta.schemes.kernels import launch

BLOCK = 4096  # numbers of a row at a time
SERIES = 0.125
"""|δ| below which expm1(δ) − δ is summed as a series, where exp(δ) − 1 − δ would cancel. Its first term that is left out,
δ^7/5040, is 1.2e-8 of the first, δ²/2, there; beyond it what exp rounds off is 1.5e-5 of δ²/2 at most."""


@no_type_check
def _score_rows(
    q_at, p_at, targets, out, scored, total, q_window, q_row, p_window, p_row,
    VOCABULARY: tl.constexpr, FAR: tl.constexpr, SERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    q_at += row // scored * q_window + row % scored * q_row
    p_at += row // scored * p_window + row % scored * p_row
    lowest = -float("inf")
    q_max, q_sum, q_top = lowest, 0.0, 0
    p_max, p_sum, p_top = lowest, 0.0, 0
    for start in range(0, VOCABULARY, BLOCK):
        at = start + tl.arange(0, BLOCK)
        q = tl.load(q_at + at, mask=at < VOCABULARY, other=lowest).to(tl.float32)
        p = tl.load(p_at + at, mask=at < VOCABULARY, other=lowest).to(tl.float32)
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
    # p and q are divided by their sums: a rounded log Z would scale all of a row, and its KL; in δ it does no harm
    shift = (q_max - p_max) + (tl.log(q_sum) - tl.log(p_sum))
    kl, tvd = 0.0, 0.0
    for start in range(0, VOCABULARY, BLOCK):
        at = start + tl.arange(0, BLOCK)
        y = tl.load(q_at + at, mask=at < VOCABULARY, other=0.0).to(tl.float32)
        x = tl.load(p_at + at, mask=at < VOCABULARY, other=0.0).to(tl.float32)
        d = (y - x) - shift
        near = tl.minimum(d, FAR)
        short = near * near * (0.5 + near * (1 / 6 + near * (1 / 24 + near * (1 / 120 + near * (1 / 720)))))
        p, q = tl.exp(x - p_max) / p_sum, tl.exp(y - q_max) / q_sum
        term = tl.where(tl.abs(d) < SERIES, short, tl.exp(near) - 1.0 - near) * p
        kl += tl.sum(tl.where(at < VOCABULARY, tl.where(d > FAR, q, term), 0.0), 0)
        tvd += tl.sum(tl.where(at < VOCABULARY, tl.abs(q - p), 0.0), 0) / 2
    target = tl.load(q_at + tl.load(targets + row)).to(tl.float32)
    tl.store(out + row, (q_max - target) + tl.log(q_sum))
    tl.store(out + total + row, kl)
    tl.store(out + 2 * total + row, tvd)
    tl.store(out + 3 * total + row, tl.where(q_top == p_top, 1.0, 0.0))


# not compiled again for a number of rows that happens to be a multiple of 16
_score = triton.jit(_score_rows, do_not_specialize=["scored", "total"])


def score(
    logits: Float[Tensor, "batch scored vocabulary"],
    reference: Float[Tensor, "batch scored vocabulary"],
    targets: Int64[Tensor, "batch scored"],
) -> Float[Tensor, "4 batch scored"]:
    """NLL, KL(reference ‖ logits) in nats, TVD, and whether the largest are the same, of each row."""
    batch, scored, vocabulary = logits.shape
    assert logits.stride(2) == reference.stride(2) == 1
    out = torch.empty(4, batch, scored, device=logits.device)
    launch(
        _score, batch * scored,
        logits, reference, targets.contiguous(), out, scored, batch * scored,
        logits.stride(0), logits.stride(1), reference.stride(0), reference.stride(1),
        warps=8, VOCABULARY=vocabulary, FAR=FAR, SERIES=SERIES, BLOCK=BLOCK,
    )  # fmt: skip
    return out
