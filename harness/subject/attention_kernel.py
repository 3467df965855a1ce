"""Attention of a few new tokens over a long past in one kernel (Triton): the query heads that share a KV head are rows of one
product, and each key and value is read once for all of them. FlashAttention's tiles of 128 queries, of which a step of 16 tokens
fills an eighth, read them once for every query head. The online softmax is that of Dao et al. 2022, arXiv 2205.14135."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.kernels import launch, power_of_two

ROWS = 128  # query heads that share a KV head, times new tokens: what one program holds
KEYS, WARPS = 128, 4  # keys at a time, and warps of a program
LOG2_E = 1.4426950408889634


@no_type_check
def _attend_rows(
    q_at, k_at, v_at, out, scale, kv_heads, queries, keys, rows,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    batch, kv_head = program // kv_heads, program % kv_heads
    row, channel, near = tl.arange(0, ROWS), tl.arange(0, CHANNELS), tl.arange(0, KEYS)
    head, token = row // queries, row % queries
    group = rows // queries
    q_rows = q_at + batch * q_batch + (kv_head * group + head)[:, None] * q_head + token[:, None] * q_token
    q = tl.load(q_rows + channel[None, :], mask=row[:, None] < rows, other=0.0)
    k_tile = k_at + batch * k_batch + kv_head * k_head + near[None, :] * k_token + channel[:, None]
    v_tile = v_at + batch * v_batch + kv_head * v_head + near[:, None] * v_token + channel[None, :]
    last = keys - queries + token  # that a row sees
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, CHANNELS], tl.float32)
    start = 0
    while start < keys:
        at = start + near
        k = tl.load(k_tile + start * k_token, mask=at[None, :] < keys, other=0.0)
        scores = tl.dot(q, k) * (scale * LOG2_E)
        scores = tl.where(at[None, :] <= last[:, None], scores, -float("inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))  # finite from the first tile on: every row sees key 0
        p = tl.exp2(scores - larger[:, None])
        shrunk = tl.exp2(largest - larger)
        total = total * shrunk + tl.sum(p, 1)
        v = tl.load(v_tile + start * v_token, mask=at[:, None] < keys, other=0.0)
        mixed = mixed * shrunk[:, None] + tl.dot(p.to(v.dtype), v)
        largest = larger
        start += KEYS
    mixed = mixed / total[:, None]
    place = ((batch * queries + token) * kv_heads * group + kv_head * group + head)[:, None] * CHANNELS
    tl.store(out + place + channel[None, :], mixed.to(out.dtype.element_ty), mask=row[:, None] < rows)


# not compiled again for a number of keys that happens to be a multiple of 16
_attend = triton.jit(_attend_rows, do_not_specialize=["keys", "queries", "rows"])


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether shapes [batch, heads, tokens, channels] are such that it can."""
    rows = query.shape[1] // key.shape[1] * query.shape[2]
    channels = key.shape[3]
    unit = query.stride(3) == key.stride(3) == value.stride(3) == 1
    return rows <= ROWS and channels == value.shape[3] and 16 <= channels <= 128 and power_of_two(channels) and unit


def attend(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch kv_heads keys channels"],
    value: Float[Tensor, "batch kv_heads keys channels"],
    scale: float,
) -> Float[Tensor, "batch queries heads channels"]:
    """Of queries that are the last tokens; each sees the keys up to its own."""
    batch, heads, queries, channels = query.shape
    kv_heads, keys = key.shape[1:3]
    rows = heads // kv_heads * queries
    out = torch.empty(batch, queries, heads, channels, dtype=query.dtype, device=query.device)
    launch(
        _attend, batch * kv_heads,
        query, key, value, out, scale, kv_heads, queries, keys, rows,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        warps=WARPS, ROWS=max(16, triton.next_power_of_2(rows)), CHANNELS=channels, KEYS=KEYS, LOG2_E=LOG2_E,
    )  # fmt: skip
    return out
