"""What a scheme is made of: a quantizer encodes one tensor, the quantized tensor decodes itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvdelta.schemes.errors import UserError
from kvdelta.schemes.grouping import Grouping

KV = Float[Tensor, "batch heads tokens channels"]  # heads are KV heads; keys as the model caches them (after RoPE)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor(ABC):
    """Encoded keys or values of `tokens` tokens.

    Every part has the batch on dim 0 and token groups of `tokens_per_group` tokens on dim 2; a cropped tensor
    may hold fewer valid tokens than its groups have room for. `dtype` is what `dequantize` returns.
    """

    tokens: int
    tokens_per_group: int
    dtype: torch.dtype

    @property
    def code_parts(self) -> tuple[str, ...]:
        """What the destructive control sets to zero."""
        return ("codes",)

    @property
    def saturated(self) -> int | Tensor:
        """Numbers that were beyond the largest that the format has; a tensor where a device counts them, which int()
        would wait for."""
        return 0

    @abstractmethod
    def dequantize(self) -> KV: ...

    def parts(self) -> dict[str, Tensor]:
        """The stored tensors by name: what is held, and nothing else."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: part for name, part in held.items() if isinstance(part, Tensor)}

    def with_parts(self, parts: dict[str, Tensor], tokens: int) -> Self:
        """The same layout around other tensors."""
        return replace(self, tokens=tokens, **parts)

    @property
    def groups(self) -> int:
        """Token groups in use."""
        return -(-self.tokens // self.tokens_per_group)

    def nbytes(self) -> dict[str, int]:
        """Bytes held, by part."""
        return {name: part.numel() * part.element_size() for name, part in self.parts().items()}

    def counted_bytes(self) -> float:
        """Bytes as they are reported; differs from `nbytes` only where exact numbers are held, which count 16 bits."""
        return sum(self.nbytes().values())

    def extended(self, new: "QuantizedTensor", room: Callable[[int], int]) -> Self:
        """With the tokens of `new`, of the same layout, behind these, in place where the buffers have room; room(groups): how
        many groups a buffer that must grow gets."""
        used, needed = self.groups, self.groups + new.groups
        parts = self.parts()
        for name, added in new.parts().items():
            buffer = parts[name]
            if buffer.shape[2] < needed:
                grown = buffer.new_empty((*buffer.shape[:2], room(needed), *buffer.shape[3:]))
                grown[:, :, :used] = buffer[:, :, :used]
                parts[name] = buffer = grown
            buffer[:, :, used:needed] = added
        return self.with_parts(parts, self.tokens + new.tokens)

    def map_parts(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self.with_parts({name: change(part) for name, part in self.parts().items()}, self.tokens)

    def crop(self, tokens: int) -> Self:
        """The first `tokens` tokens; nothing is quantized again."""
        groups = -(-tokens // self.tokens_per_group)
        return self.with_parts({name: part[:, :, :groups] for name, part in self.parts().items()}, tokens)

    def without_first(self, groups: int) -> Self:
        """What is behind the first `groups` token groups."""
        parts = {name: part[:, :, groups:] for name, part in self.parts().items()}
        return self.with_parts(parts, self.tokens - groups * self.tokens_per_group)

    def index_select(self, rows: Int[Tensor, "rows"]) -> Self:
        return self.map_parts(lambda part: part.index_select(0, rows.to(part.device)))

    def repeat(self, repeats: int) -> Self:
        return self.map_parts(lambda part: part.repeat_interleave(repeats, dim=0))

    def to(self, device: torch.device | str) -> Self:
        return self.map_parts(lambda part: part.to(device))

    def with_zeroed_codes(self) -> Self:
        """The destructive control: scales kept, every code 0."""
        parts = self.parts()
        return self.with_parts(
            {name: torch.zeros_like(part) if name in self.code_parts else part for name, part in parts.items()},
            self.tokens,
        )


@runtime_checkable
class Rotary(Protocol):
    """A model's rotary embedding of one layer; tokens are at positions start, start + 1, …"""

    def rotate(self, keys: KV, start: int) -> KV: ...
    def unrotate(self, keys: KV, start: int) -> KV: ...


@dataclass(frozen=True)
class Place:
    """Where a quantizer works: layer index, side ("key" or "value"), the model's rotary embedding there, how many first tokens
    never reach it, since they stay exact, and how to find the bias of its key projection, None where it has none."""

    layer: int
    side: str
    rotary: Rotary | None
    sink_tokens: int = 0
    find_key_bias: Callable[[int], Float[Tensor, "heads channels"] | None] | None = None


class Quantizer(ABC):
    """Encodes one tensor. Subclasses are final frozen dataclasses: equal parameters, equal quantizers. What it promises
    is held by the conformance suite."""

    lossless: ClassVar[bool] = False
    needs_place: ClassVar[bool] = False
    """Whether `bind` must be called first: it works with what a model's layer is, not with keys and values alone."""

    @property
    def tokens_per_group(self) -> int:
        """Tokens that are encoded together."""
        return 1

    @property
    def independent(self) -> bool | str:
        """Whether batch rows and heads are encoded independently; a string says why not."""
        return True

    @property
    def rows_independent(self) -> bool | str:
        """Whether batch rows are, whatever is with heads: what cannot be asked of several windows in one call says why."""
        return True

    @property
    def heads_independent(self) -> bool | str:
        """Whether heads are, in codes and in bytes, whatever is with batch rows: what cannot be asked of some of the heads, where
        processes share them, says why not."""
        return self.independent

    @property
    def appends(self) -> bool | str:
        """Whether blocks are encoded independently, so that k at once equal k times one; a string says why not."""
        return True

    @property
    def bounded(self) -> bool | str:
        """Whether `|x − x̂|` is at most half a step (scale, times the largest gap of its levels) up to the rounding of the
        stored parameters; a string says why not, False that there are no such parameters."""
        return False

    @property
    def constants(self) -> bool | str:
        """Whether a constant is rebuilt to the rounding of one stored float16; a string says why not."""
        return True

    @abstractmethod
    def quantize(self, x: KV) -> QuantizedTensor:
        """Encode whole token groups: the number of tokens is a multiple of `tokens_per_group`."""

    def quantize_at(self, x: KV, start: int) -> QuantizedTensor:
        """The same, for one that needs to know the position of the first token."""
        return self.quantize(x)

    def bind(self, place: Place) -> "Quantizer":
        """The quantizer for one layer and side: the hook for what is calibrated or needs the model's rotary."""
        return self

    @property
    def calibrated_for(self) -> Mapping[str, Any] | None:
        """The model that its calibration was made of, as records name it; None where there is none, or it is not known."""
        return None

    @property
    def calibrated_on(self) -> Mapping[str, Any] | None:
        """Of a calibrated quantizer, which text it has seen: name, sha256, token_sha256."""
        return None

    @property
    def grouping(self) -> Grouping:
        """Which elements clipping takes together."""
        return Grouping("token", "all")

    def check(self, channels: int) -> None:  # noqa: B027 (most quantizers take any width)
        """Raise UserError where heads of `channels` channels cannot be encoded."""


@dataclass(frozen=True)
class TensorScheme:
    """How keys, or values, are stored.

    keep_recent: newest tokens that stay exact; flush_every: block length in tokens, by default one token group;
    sink_tokens: first tokens that stay exact. first: encodes what is quantized first, as many tokens as one of its groups
    has, together; `quantizer` all others.
    """

    quantizer: Quantizer
    keep_recent: int = 0
    flush_every: int = 0  # 0: one token group
    sink_tokens: int = 0
    first: Quantizer | None = None

    def __post_init__(self) -> None:
        group = self.quantizer.tokens_per_group
        if self.flush_every == 0:
            object.__setattr__(self, "flush_every", group)
        for name in ("keep_recent", "flush_every", "sink_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: a number of tokens is not negative")
        if self.flush_every % group:
            raise UserError(
                f"group_size={group} tokens does not divide the block of {self.flush_every} tokens; per-channel groups "
                f"need a block (flush_every, or residual_length in kivi) that is a multiple of {group}"
            )

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """What encodes some of the tokens."""
        return (self.quantizer,) if self.first is None else (self.first, self.quantizer)

    @property
    def first_tokens(self) -> int:
        """Tokens that `first` encodes; 0 without one."""
        return 0 if self.first is None else self.first.tokens_per_group

    def packed_tokens(self, length: int) -> int:
        """How many of `length` tokens are quantized: the state depends on the length alone."""
        return self.due(length - self.sink_tokens - self.keep_recent)

    def due(self, count: int, begun: bool = False) -> int:
        """How many of the next `count` tokens, which may not stay exact, are quantized now. begun: some were before."""
        first = 0 if begun else self.first_tokens
        return 0 if count < first else max(0, first + (count - first) // self.flush_every * self.flush_every)
