"""The loudest channels of a block by one quantizer, the others by another."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.grouping import require_whole_groups
from kvdelta.schemes.wrapping import Decoded, in_range

LOUD, OTHERS = "loud ", ""  # what names of parts begin with
Order = Int[Tensor, "batch heads blocks channels"]


def _order(places: Tensor, channels: int) -> Order:
    """The channels at `places`, then the others, ascending."""
    rank = torch.ones(*places.shape[:-1], channels, dtype=torch.int8, device=places.device).scatter(-1, places, 0)
    return rank.argsort(dim=-1, stable=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoWidthsTensor(QuantizedTensor):
    """places: the loud channels of each head and block, ascending."""

    loud: QuantizedTensor
    others: QuantizedTensor
    places: UInt8[Tensor, "batch heads blocks count"]

    @property
    def _both(self) -> dict[str, QuantizedTensor]:
        return {LOUD: self.loud, OTHERS: self.others}

    @property
    def code_parts(self) -> tuple[str, ...]:
        return tuple(prefix + name for prefix, inner in self._both.items() for name in inner.code_parts)

    def parts(self) -> dict[str, Tensor]:
        held = {"places": self.places}
        for prefix, inner in self._both.items():
            for name, part in inner.parts().items():
                held[prefix + name] = part.unflatten(2, (-1, self.tokens_per_group))
        return held

    def with_parts(self, parts: dict[str, Tensor], tokens: int) -> Self:
        inside = parts["places"].shape[2] * self.tokens_per_group
        loud, others = (
            inner.with_parts({name: parts[prefix + name].flatten(2, 3) for name in inner.parts()}, inside)
            for prefix, inner in self._both.items()
        )
        return replace(self, tokens=tokens, loud=loud, others=others, places=parts["places"])

    def dequantize(self) -> KV:
        joined = torch.cat([self.loud.dequantize(), self.others.dequantize()], dim=-1)
        blocks = joined.unflatten(2, (-1, self.tokens_per_group))
        order = _order(self.places.long(), joined.shape[-1])[..., None, :].expand_as(blocks)
        x = torch.empty_like(blocks).scatter_(-1, order, blocks).flatten(2, 3)
        return in_range(x[:, :, : self.tokens], self.dtype)


@dataclass(frozen=True)
class TwoWidthsQuantizer(Quantizer):
    """The `share` of the channels with the largest mean |x| in a block and head by `loud`, the rest by `others`: two
    quantizers of single tokens."""

    loud: Quantizer
    others: Quantizer
    share: float = 0.25
    block: int = 128

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UserError(f"block={self.block}: a block has at least 1 token")

    @property
    def tokens_per_group(self) -> int:
        return self.block

    @property
    def constants(self) -> bool | str:
        return self.loud.constants

    def check(self, channels: int) -> None:
        count = int(self.share * channels)
        if channels > 256 or count != self.share * channels:
            raise UserError(
                f"{channels} channels do not divide into {self.share:g} of them and the rest, or are more than 256"
            )
        try:
            self.loud.check(count)
            self.others.check(channels - count)
        except UserError as error:
            raise UserError(f"of {channels} channels {count} are apart: {error}") from None

    def quantize(self, x: KV) -> TwoWidthsTensor:
        self.check(x.shape[3])
        require_whole_groups(x.shape[2], self.block)
        blocks = x.float().unflatten(2, (-1, self.block))
        count = int(self.share * x.shape[3])
        places = blocks.abs().mean(-2).topk(count, dim=-1).indices.sort(-1).values
        order = _order(places, x.shape[3])[..., None, :].expand_as(blocks)
        sorted_out: Decoded = blocks.gather(-1, order).flatten(2, 3)
        return TwoWidthsTensor(
            tokens=x.shape[2],
            tokens_per_group=self.block,
            dtype=x.dtype,
            loud=self.loud.quantize(sorted_out[..., :count]),
            others=self.others.quantize(sorted_out[..., count:]),
            places=places.to(torch.uint8),
        )
