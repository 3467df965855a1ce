"""KVarN: rotate, even out the variances of tokens and channels of a tile, then asymmetric codes."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes import kernels
from kvdelta.schemes.affine import MinMaxQuantizer, stored_scale
from kvdelta.schemes.base import KV, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import require_whole_groups
from kvdelta.schemes.rotation import RotatedQuantizer
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper, unblocked

Bits = Literal[1, 2, 3, 4, 8]
Blocks = Float[Tensor, "batch heads blocks channels block"]

STD_RANGE = (1e-3, 1e3)
LOG_RANGE = (-0.3, 10.0)

Side = Literal["token", "channel"]


MOST = 1000  # pairs of divisions; after some ten the best is found


def even_out(tiles: Blocks, first: Side, iterations: int) -> tuple[Tensor, Tensor]:
    """Scales of channels [..., channels, 1] and tokens [..., 1, block] that even out the standard deviations of both:
    alternating divisions in the log domain, `first` first. Of the start and what each whole pair of divisions leaves, the one
    with the least sum of the ratios of largest to smallest standard deviation, over channels and over tokens; of equals
    the last."""
    squares, channels, tokens = tiles.square(), tiles.shape[-2], tiles.shape[-1]
    logs = [torch.zeros_like(tiles[..., :1]), torch.zeros_like(tiles[..., :1, :])]  # of channels, of tokens
    best, least = [log.clone() for log in logs], None
    order = (1, 0) if first == "token" else (0, 1)
    # sums of the divided tile, and of its squares, as products: no divided tile is made. Those over tokens change where these
    # were divided, those over channels where those were: each division asks for one pair
    sums = [_over_tokens(tiles, squares, logs[1]), _over_channels(tiles, squares, logs[0])]
    counts = (tokens, channels)
    for step in range(2 * iterations + 1):
        if step % 2 == 0:
            stds = [_std((-log).exp(), *of, count) for log, of, count in zip(logs, sums, counts, strict=True)]
            ratios = [std.amax((-1, -2), keepdim=True) / std.amin((-1, -2), keepdim=True) for std in stds]
            spread = ratios[0] + ratios[1]
            least = spread if least is None else least
            best = [torch.where(spread <= least, log, kept) for log, kept in zip(logs, best, strict=True)]
            least = torch.minimum(spread, least)
        if step == 2 * iterations:
            break
        side = order[step % 2]
        std = _std((-logs[side]).exp(), *sums[side], counts[side])
        logs[side] = (logs[side] + std.log()).clamp(*LOG_RANGE)
        sums[1 - side] = _over_channels(tiles, squares, logs[0]) if side == 0 else _over_tokens(tiles, squares, logs[1])
    return best[0].exp(), best[1].exp()


def _over_tokens(tiles: Blocks, squares: Blocks, log: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, [..., channels, 1], the tokens divided by exp(log)."""
    by_token = (-log).exp().mT
    return tiles @ by_token, squares @ by_token.square()


def _over_channels(tiles: Blocks, squares: Blocks, log: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token, [..., 1, tokens], the channels divided by exp(log)."""
    by_channel = (-log).exp().mT
    return by_channel @ tiles, by_channel.square() @ squares


def _std(factor: Tensor, total: Tensor, squares: Tensor, count: int) -> Tensor:
    """Of `count` numbers each, from their sum and sum of squares before `factor`; float64 bears the difference."""
    mean = factor * total / count
    variance = (factor.square() * squares / count - mean.square()) * (count / (count - 1))
    return variance.clamp(min=0).sqrt().clamp(*STD_RANGE)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvenedTensor(WrappedTensor):
    """vector: what a block was divided by, one number a token [batch, heads, blocks, block], or a channel
    [batch, heads, blocks, channels]."""

    vector: Float[Tensor, "batch heads blocks length"]
    along: Side

    def restore(self, x: Decoded) -> Decoded:
        if self.along == "token":
            return x * self.vector.float().flatten(2)[..., None]
        blocks = x.unflatten(2, (-1, self.tokens_per_group))
        return (blocks * self.vector.float()[..., None, :]).flatten(2, 3)


@dataclass(frozen=True)
class EvenedQuantizer(Wrapper):
    """Divides a tile by one scale a token (along="token", around a per-channel quantizer) or a channel (around a
    per-token one), which are also the first that it evens out. The scales along the inner quantizer's own groups are folded
    into its scale and offset, which min–max does by itself: they only decide, in `even_out`, what the others are."""

    along: Side = "token"
    iterations: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.iterations <= MOST:
            raise UserError(f"iterations={self.iterations}: a tile is evened out once or more, at most {MOST} times")
        if self.block < 2:
            raise UserError(f"tile={self.block}: one token has no standard deviation; a tile has at least 2 tokens")

    def check(self, channels: int) -> None:
        if channels < 2:
            raise UserError(f"{channels} channel has no standard deviation; a tile has at least 2")
        super().check(channels)

    @property
    def constants(self) -> bool | str:
        return "tile and vector are rounded apart"

    def quantize(self, x: KV) -> EvenedTensor:
        divided, vector = self._divided(x)
        return EvenedTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(divided),
            vector=vector,
            along=self.along,
        )

    def _divided(self, x: KV) -> tuple[Decoded, Tensor]:
        """x in float32 without the stored scales, and these."""
        require_whole_groups(x.shape[2], self.block)
        if kernels.available(x.device, x.numel()):
            from kvdelta.schemes.kernels import evening

            if evening.works(self.block, x.shape[3]):
                limits = _limits(x.device)
                return evening.evened(x.float(), self.block, self.along, self.iterations, limits)
        tiles = self.blocks(x)
        # in float64: the last bits of a sum depend on its shape, and parts must not depend on how many tokens came
        channel, token = even_out(tiles.double(), self.along, self.iterations)
        vector = stored_scale((token if self.along == "token" else channel).float())
        return unblocked(tiles / vector.float()), vector.flatten(3)


@cache
def _limits(device: torch.device) -> Tensor:
    return torch.tensor((*STD_RANGE, *LOG_RANGE), dtype=torch.float64, device=device)


def kvarn(
    *, key_bits: Bits = 4, value_bits: Bits = 2, tile: int = 128, iterations: int = 8
) -> tuple[TensorScheme, TensorScheme]:
    """Tiles of `tile` tokens and the whole width of a head, both sides rotated, evened out by `iterations` pairs of divisions:
    keys by tokens, then channels, values by channels, then tokens."""
    key = EvenedQuantizer(MinMaxQuantizer(key_bits, tile, "channel"), tile, "token", iterations)
    value = EvenedQuantizer(MinMaxQuantizer(value_bits, "all", "token"), tile, "channel", iterations)
    return TensorScheme(RotatedQuantizer(key)), TensorScheme(RotatedQuantizer(value))


FAMILY = Family(
    kvarn,
    "rotation, then variances of tokens and channels evened out in each tile; keys per channel, values per token",
    "Muller et al. 2026 (KVarN), arXiv 2606.03458",
    formula="Y = X·H; `iterations` pairs of divisions by standard deviations, K of tokens, then channels, V of channels, then "
    "tokens; of the start and what each pair leaves the most even; asymmetric codes, K per channel over the tile, V per token; one "
    "scale is folded into those, the other stored as a vector. Bits at 64 channels and tiles of 128: K b + .5, V b + .625. "
    "kvarn-vllm is what is released: the first 128 tokens stay exact.",
    good="loud channels and loud tokens at once: .204 where per-channel groups of 32 have .313 (planted data, 2 bits).",
    fails="even data: it pays metadata for nothing. A tile must fill, so up to 127 tokens stay exact.",
    short={"kvarn-vllm": {"sink_tokens": 128}},
    compared="with the released code (vLLM, quantization/kvarn, 231f52a): vectors up to a common factor, codes and what is read are equal "
    "but for ties. Computed in float64, there in float32; standard deviations are kept within [0.001, 1000] where their ratios are "
    "compared too",
)
