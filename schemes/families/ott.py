"""OTT: KIVI's axes, and in each block the tokens with the smallest numbers kept exact."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kvdelta.schemes.affine import MinMaxQuantizer, stored_offset
from kvdelta.schemes.base import KV, Quantizer, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import require_whole_groups
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper

Bits = Literal[1, 2, 3, 4, 8]
BYTE, WORD = 256, 65536  # places that 8 and 16 bits can name


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierTokensTensor(WrappedTensor):
    """token: the exact tokens, float16 [batch, heads, blocks, count, channels]; place: which of their block they are,
    uint8 or int16 (read as unsigned) [batch, heads, blocks, count]."""

    token: Float[Tensor, "batch heads blocks count channels"]
    place: Shaped[Tensor, "batch heads blocks count"]

    def restore(self, x: Decoded) -> Decoded:
        blocks = x.unflatten(2, (-1, self.tokens_per_group))
        places = (self.place.long() & (WORD - 1))[..., None].expand_as(self.token)
        return blocks.scatter(-2, places, self.token.float()).flatten(2, 3)


@dataclass(frozen=True)
class OutlierTokensQuantizer(Wrapper):
    """Of each head and block of `block` tokens the `count` with the smallest Σ|x| over channels, of equal ones the first, in
    float16; the inner quantizer has the block's mean, channel by channel, in their place."""

    count: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.count < self.block:
            raise UserError(
                f"outliers={self.count}: of a block of {self.block} tokens at least one is quantized, and 0 keeps none exact"
            )
        if self.block > WORD:
            raise UserError(f"group_size={self.block}: an index of 16 bits names {WORD} tokens of a block")

    def quantize(self, x: KV) -> OutlierTokensTensor:
        require_whole_groups(x.shape[2], self.block)
        blocks = x.float().unflatten(2, (-1, self.block))
        # in float64: the last bits of a sum depend on its shape, and parts must not depend on how many tokens came
        wide = blocks.double()
        order = wide.abs().sum(-1).argsort(dim=-1, stable=True)  # of equal ones the first, on every device
        places = order[..., : self.count].sort(dim=-1).values
        at = places[..., None].expand(*places.shape, x.shape[3])
        others = blocks.scatter(-2, at, wide.mean(-2, keepdim=True).float().expand(at.shape))
        return OutlierTokensTensor(
            tokens=x.shape[2],
            tokens_per_group=self.block,
            dtype=x.dtype,
            inner=self.inner.quantize(others.flatten(2, 3)),
            token=stored_offset(blocks.gather(-2, at)),
            place=places.to(torch.uint8 if self.block <= BYTE else torch.int16),
        )


def ott(
    *,
    key_bits: Bits = 2,
    value_bits: Bits = 2,
    group_size: int = 128,
    key_outliers: int = 3,
    value_outliers: int = 3,
    residual_length: int = 32,
) -> tuple[TensorScheme, TensorScheme]:
    """Keys per channel over `group_size` tokens, values per token over as many channels; both are quantized when
    `group_size` tokens wait beside the newest `residual_length`, which stay exact. key_outliers, value_outliers: tokens of
    each such block and head that stay exact too; 0: none."""

    def side(inner: MinMaxQuantizer, outliers: int) -> TensorScheme:
        quantizer: Quantizer = OutlierTokensQuantizer(inner, group_size, outliers) if outliers else inner
        return TensorScheme(quantizer, residual_length, group_size)

    return (
        side(MinMaxQuantizer(key_bits, group_size, "channel"), key_outliers),
        side(MinMaxQuantizer(value_bits, group_size, "token"), value_outliers),
    )


FAMILY = Family(
    ott,
    "keys per channel, values per token, a few tokens of each block exact: those with the smallest numbers; a short window",
    "Su et al. 2025 (OTT), arXiv 2505.10938",
    formula="per head and block of G tokens: the n with the smallest Σ|x| over channels are stored as they are, and the block's mean "
    "is quantized in their place; asymmetric, float zero, K per channel over the block, V per token over G channels. Both wait for "
    "whole blocks behind R exact tokens. Bits at 64 channels: K b + 32/G, V b + 32/64, both + n·(16 + 8/64)/G: .38 for 3 of 128.",
    good="keys whose loud channels are quiet in one token, wherever it stands: it stretches the range of each. 2 bits, planted data "
    "with such a token in groups of 128: .197 with one token exact where KIVI has .216, and .197 without that token.",
    fails="blocks without such tokens: n of each are kept all the same. On keys of SmolLM2's layer 15 groups of 64 have .223 at 2.50 "
    "bits, 3 of 128 .246 at 2.63, 1 of 64 .215 at 2.75. Values: a token has a range of its own there, which stretches no other.",
    own_residual=True,
    compared="with the rule as summaries of the paper give it, transcribed; its code (yisunlp/OTT) was not at hand and has not run. "
    "Departs: there a pool of 3 tokens serves the whole text, tokens of a block compete with those in it, and those that it loses stay "
    "exact elsewhere until 32 do: at most 35 tokens, where here each block has its own n, since blocks do not depend on one another. "
    "All that the pool takes is exact here too, and more, so that the measured bits are more than published. Keys choose the tokens of "
    "values too there; here each side has its own. They are chosen in each head, of which the summaries say nothing. The first one or two "
    "layers keep none there: here a map of layers says so, with ott:outliers=0",
)
