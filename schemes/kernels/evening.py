"""KVarN's balancing of a tile of tokens and channels: all steps in registers, in float64."""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from typing import Literal, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvdelta.schemes.kernels import launch, power_of_two

LARGEST = 16384  # numbers of a tile
A_WARP = 1024  # of these


@triton.jit
@no_type_check
def _std(factor, total, squares, count: tl.constexpr, low, high):
    mean = factor * total / count
    variance = (factor * factor * squares / count - mean * mean) * count / (count - 1)
    return tl.minimum(tl.maximum(tl.sqrt(tl.maximum(variance, 0.0)), low), high)


@triton.jit
@no_type_check
def _over_tokens(values, token_log):
    part = values * tl.exp(-token_log)[:, None]
    return tl.sum(part, 0), tl.sum(part * part, 0)


@triton.jit
@no_type_check
def _over_channels(values, channel_log):
    part = values * tl.exp(-channel_log)[None, :]
    return tl.sum(part, 1), tl.sum(part * part, 1)


@triton.jit
@no_type_check
def _even_out(
    x, divided, vectors, limits, BY_TOKEN: tl.constexpr, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    token, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    at = tile * (BLOCK * CHANNELS) + token[:, None] * CHANNELS + channel[None, :]
    numbers = tl.load(x + at)
    values = numbers.to(tl.float64)
    least_std, most_std = tl.load(limits), tl.load(limits + 1)
    least_log, most_log = tl.load(limits + 2), tl.load(limits + 3)

    token_log, channel_log = tl.zeros((BLOCK,), tl.float64), tl.zeros((CHANNELS,), tl.float64)
    best_token, best_channel = token_log, channel_log
    least = tl.full((), float("inf"), tl.float64)
    # sums over tokens change where these were divided, sums over channels where those were: each division asks for one pair
    channel_total, channel_squares = tl.sum(values, 0), tl.sum(values * values, 0)
    token_total, token_squares = tl.sum(values, 1), tl.sum(values * values, 1)
    for pair in range(ITERATIONS + 1):
        by_token, by_channel = tl.exp(-token_log), tl.exp(-channel_log)
        channel_std = _std(by_channel, channel_total, channel_squares, BLOCK, least_std, most_std)
        token_std = _std(by_token, token_total, token_squares, CHANNELS, least_std, most_std)
        spread = tl.max(channel_std, 0) / tl.min(channel_std, 0) + tl.max(token_std, 0) / tl.min(token_std, 0)
        better = spread <= least
        best_token = tl.where(better, token_log, best_token)
        best_channel = tl.where(better, channel_log, best_channel)
        least = tl.where(better, spread, least)
        if pair < ITERATIONS:
            if BY_TOKEN:
                token_log = tl.minimum(tl.maximum(token_log + tl.log(token_std), least_log), most_log)
                channel_total, channel_squares = _over_tokens(values, token_log)
                channel_std = _std(by_channel, channel_total, channel_squares, BLOCK, least_std, most_std)
                channel_log = tl.minimum(tl.maximum(channel_log + tl.log(channel_std), least_log), most_log)
                token_total, token_squares = _over_channels(values, channel_log)
            else:
                channel_log = tl.minimum(tl.maximum(channel_log + tl.log(channel_std), least_log), most_log)
                token_total, token_squares = _over_channels(values, channel_log)
                token_std = _std(by_token, token_total, token_squares, CHANNELS, least_std, most_std)
                token_log = tl.minimum(tl.maximum(token_log + tl.log(token_std), least_log), most_log)
                channel_total, channel_squares = _over_tokens(values, token_log)

    scale = tl.exp(best_token).to(tl.float32) if BY_TOKEN else tl.exp(best_channel).to(tl.float32)
    stored = tl.minimum(tl.maximum(scale, 5.9604644775390625e-08), 65504.0).to(tl.float16)
    if BY_TOKEN:
        tl.store(vectors + tile * BLOCK + token, stored)
        divisor = tl.broadcast_to(stored.to(tl.float32)[:, None], numbers.shape)
    else:
        tl.store(vectors + tile * CHANNELS + channel, stored)
        divisor = tl.broadcast_to(stored.to(tl.float32)[None, :], numbers.shape)
    tl.store(divided + at, tl.math.div_rn(numbers, divisor))


def works(block: int, channels: int) -> bool:
    return power_of_two(block) and power_of_two(channels) and min(block, channels) > 1 and block * channels <= LARGEST


def evened(
    x: Tensor, block: int, along: Literal["token", "channel"], iterations: int, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """x [batch, heads, tokens, channels] float32, divided in each block of tokens by one stored scale a token or channel,
    and those scales [batch, heads, blocks, block or channels]; limits: of standard deviations, and of logarithms of scales,
    float64 [4]."""
    batch, heads, tokens, channels = x.shape
    divided = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    length = block if along == "token" else channels
    vectors = torch.empty(batch, heads, tokens // block, length, dtype=torch.float16, device=x.device)
    launch(
        _even_out, x.numel() // (block * channels),
        x.contiguous(), divided, vectors, limits,
        warps=max(1, min(16, block * channels // A_WARP)),
        BY_TOKEN=along == "token", ITERATIONS=iterations, BLOCK=block, CHANNELS=channels,
    )  # fmt: skip
    return divided, vectors
