"""Kitty: in each block the loudest channels of the keys at 4 bits, the others at 2."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from kvdelta.schemes.affine import MinMaxQuantizer, QParams
from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import Grouping
from kvdelta.schemes.packing import check_packable, pack, unpack
from kvdelta.schemes.residual_window import windowed
from kvdelta.schemes.wrapping import in_range, unblocked

HIGH, LOW = 4, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedTensor(QuantizedTensor):
    """Of each block and head: `boosted`, the indices of the channels that have 4 bits; codes of those, and of the
    others in their order; scale and offset of all channels in the same order (boosted first), float16."""

    codes: UInt8[Tensor, "batch heads blocks bytes"]
    low_codes: UInt8[Tensor, "batch heads blocks low_bytes"]
    scale: Tensor
    offset: Tensor
    boosted: UInt8[Tensor, "batch heads blocks count"]

    @property
    def code_parts(self) -> tuple[str, ...]:
        return ("codes", "low_codes")

    def dequantize(self) -> KV:
        size, channels, count = self.tokens_per_group, self.scale.shape[-1], self.boosted.shape[-1]
        high = unpack(self.codes, HIGH).unflatten(-1, (count, size))
        low = unpack(self.low_codes, LOW).unflatten(-1, (channels - count, size))
        x = QParams(self.scale, self.offset).decode(torch.cat([high, low], dim=-2))
        order = _order(self.boosted.long(), channels)
        x = torch.empty_like(x).scatter_(-2, order[..., None].expand_as(x), x)
        return in_range(unblocked(x)[:, :, : self.tokens], self.dtype)


def _order(boosted: Tensor, channels: int) -> Tensor:
    """The boosted channels, then the others, ascending: [batch, heads, blocks, channels]."""
    rank = torch.zeros(*boosted.shape[:-1], channels, dtype=torch.long, device=boosted.device).scatter(-1, boosted, 1)
    others = rank.argsort(dim=-1, stable=True)[..., : channels - boosted.shape[-1]]
    return torch.cat([boosted, others], dim=-1)


@dataclass(frozen=True)
class MixedQuantizer(Quantizer):
    """Asymmetric per channel over blocks of `block` tokens; the ⌊boost · channels⌋ channels (at least one) with the
    largest mean |x| of a block and head have 4 bits, the others 2."""

    boost: float = 0.125
    block: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.boost < 1:
            raise UserError(f"boost={self.boost}: the share of channels at {HIGH} bits is between 0 and 1")
        check_packable(LOW, self.block)

    @property
    def tokens_per_group(self) -> int:
        return self.block

    @property
    def grouping(self) -> Grouping:
        return Grouping("channel", self.block)

    def check(self, channels: int) -> None:
        if channels > 256:
            raise UserError(f"an index of 8 bits names 256 channels, not {channels}")

    def quantize(self, x: KV) -> MixedTensor:
        blocks = self.grouping.split(x.float())[0]
        channels = blocks.shape[-2]
        count = min(channels - 1, max(1, int(self.boost * channels + 1e-6)))
        boosted = blocks.abs().mean(-1).topk(count, dim=-1).indices.sort(-1).values
        order = _order(boosted, channels)
        blocks = blocks.gather(-2, order[..., None].expand_as(blocks))
        high, low = blocks[..., :count, :], blocks[..., count:, :]
        high_params, low_params = MinMaxQuantizer(HIGH).choose_qparams(high), MinMaxQuantizer(LOW).choose_qparams(low)
        assert high_params.offset is not None
        assert low_params.offset is not None
        return MixedTensor(
            tokens=x.shape[2],
            tokens_per_group=self.block,
            dtype=x.dtype,
            codes=pack(high_params.encode(high, 2**HIGH - 1).flatten(-2), HIGH),
            low_codes=pack(low_params.encode(low, 2**LOW - 1).flatten(-2), LOW),
            scale=torch.cat([high_params.scale, low_params.scale], dim=-1),
            offset=torch.cat([high_params.offset, low_params.offset], dim=-1),
            boosted=boosted.to(torch.uint8),
        )


def kitty(
    *, boost: float = 0.125, group_size: int = 128, sink_tokens: int = 32, residual_length: int = 128
) -> tuple[TensorScheme, TensorScheme]:
    """Keys: blocks of `group_size` tokens, quantized when `residual_length` tokens are exact. Values: 2 bits per token in
    groups of `group_size` channels, the newest `residual_length` exact. The first `sink_tokens` are exact."""
    return windowed(MixedQuantizer(boost, group_size), MinMaxQuantizer(LOW, group_size), residual_length, sink_tokens)


FAMILY = Family(
    kitty,
    "2 bits, the loudest channels of the keys at 4; sinks and a window exact",
    "Xia et al. 2025 (Kitty), arXiv 2511.18643",
    formula="per block of 128 tokens and head: channels ranked by mean |K|, the first 12.5 % asymmetric at 4 bits per channel, "
    "the others at 2; V 2 bits per token. Bits: K 2.25 + 32/128 + 1/128 for the indices, V 2 + 32/G.",
    good="keys at about 2.5 bits: the error of a 2-bit key is mostly that of its few loud channels.",
    fails="values: nothing is done for them. Channels are ranked by size, not by what the queries look at.",
    short={"kitty25": {"boost": 0.25}},
    own_residual=True,
    compared="with the published code (Summer-Summer/Kitty, dfd2c07): boosted channels are the same, codes and what is read equal but for "
    "ties. Default is the paper's eighth of the channels; the released cache boosts a quarter (kitty25), and quantizes a block of keys "
    "one token later than here",
)
