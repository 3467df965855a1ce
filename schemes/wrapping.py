"""What wrappers share: a quantizer that changes numbers, hands them to another, and changes them back on read."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.grouping import Grouping

Sides = Literal["both", "key", "value"]
Decoded = Float[Tensor, "batch heads tokens channels"]  # in float32


def in_range(x: Decoded, dtype: torch.dtype) -> KV:
    """Clamped to what `dtype` can hold, and of that type."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class WrappedTensor(QuantizedTensor):
    """Around an inner quantized tensor of whole token groups; parts of its own lie beside those of the inner one."""

    inner: QuantizedTensor

    @abstractmethod
    def restore(self, x: Decoded) -> Decoded:
        """What the wrapper changed, changed back; x has the tokens of whole groups."""

    def dequantize(self) -> KV:
        x = self.restore(self.inner.dequantize().float())
        return in_range(x[:, :, : self.tokens], self.dtype)

    @property
    def code_parts(self) -> tuple[str, ...]:
        return tuple(self._named(name) for name in self.inner.code_parts)

    def _own(self) -> dict[str, Tensor]:
        return super().parts()

    def _named(self, name: str) -> str:
        return f"inner {name}" if name in self._own() else name

    @property
    def _ratio(self) -> int:
        return self.tokens_per_group // self.inner.tokens_per_group

    def parts(self) -> dict[str, Tensor]:
        inner = {self._named(name): part.unflatten(2, (-1, self._ratio)) for name, part in self.inner.parts().items()}
        return self._own() | inner

    def with_parts(self, parts: dict[str, Tensor], tokens: int) -> Self:
        own = {name: part for name, part in parts.items() if name in self._own()}
        inner = {name: parts[self._named(name)].flatten(2, 3) for name in self.inner.parts()}
        groups = next(iter(parts.values())).shape[2]
        held = self.inner.with_parts(inner, groups * self.tokens_per_group)
        return replace(self, tokens=tokens, inner=held, **own)

    def counted_bytes(self) -> float:
        own = sum(part.numel() * part.element_size() for part in self._own().values())
        return own + self.inner.crop(self.groups * self.tokens_per_group).counted_bytes()

    @property
    def saturated(self) -> int | Tensor:
        return self.inner.saturated


@dataclass(frozen=True)
class Wrapper(Quantizer):
    """A quantizer around another, on blocks of `block` tokens: by default (0) those of the inner one. What it does not
    promise itself it has from the inner one.

    UserError where the inner one works with a model's layers: its numbers must not be changed before.
    """

    inner: Quantizer
    block: int = 0

    def __post_init__(self) -> None:
        if self.inner.needs_place:
            raise UserError("a scheme that was calibrated for a model's own keys and values cannot be wrapped")
        group = self.inner.tokens_per_group
        if self.block == 0:
            object.__setattr__(self, "block", group)
        if self.block < 1 or self.block % group:
            raise UserError(
                f"block={self.block}: a block of tokens is whole groups of the quantizer inside, which takes {group}"
            )

    @property
    def tokens_per_group(self) -> int:
        return self.block

    @property
    def independent(self) -> bool | str:
        return self.inner.independent

    @property
    def rows_independent(self) -> bool | str:
        return self.inner.rows_independent

    @property
    def appends(self) -> bool | str:
        return self.inner.appends

    @property
    def constants(self) -> bool | str:
        return self.inner.constants

    @property
    def grouping(self) -> Grouping:
        return self.inner.grouping

    def check(self, channels: int) -> None:
        self.inner.check(channels)

    def blocks(self, x: KV) -> Float[Tensor, "batch heads blocks channels block"]:
        """In float32, the tokens of a block last; UserError where tokens do not fill blocks."""
        return Grouping("channel", self.block).split(x.float())[0]


def unblocked(blocks: Float[Tensor, "batch heads blocks channels block"]) -> Decoded:
    """The inverse of `Wrapper.blocks`."""
    return Grouping("channel", blocks.shape[-1]).merge([blocks])


def wrap(
    key: TensorScheme, value: TensorScheme, sides: Sides, make: Callable[[Quantizer], Quantizer]
) -> tuple[TensorScheme, TensorScheme]:
    """Both sides, or one ("key", "value"), with the quantizer that `make` makes of the inner one; flushed in blocks
    that both take."""
    wrapped = []
    for name, side in (("key", key), ("value", value)):
        if sides in ("both", name):
            quantizer = make(side.quantizer)
            every = lcm(side.flush_every, quantizer.tokens_per_group)
            first = None if side.first is None else make(side.first)
            side = replace(side, quantizer=quantizer, flush_every=every, first=first)
        wrapped.append(side)
    return wrapped[0], wrapped[1]
