"""What a scheme is made of: a quantizer encodes one tensor, the quantized tensor decodes itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from schemes.errors import UserError
from schemes.grouping import Grouping

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
    def saturated(self) -> int:
        """Numbers that were beyond the largest that the format has."""
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
    """Where a quantizer works: layer index, side ("key" or "value"), the model's rotary embedding there, and how many
    first tokens never reach it, since they stay exact."""

    layer: int
    side: str
    rotary: Rotary | None
    sink_tokens: int = 0


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
    def appends(self) -> bool | str:
        """Whether blocks are encoded independently, so that k at once equal k times one; a string says why not."""
        return True

    @property
    def bounded(self) -> bool | str:
        """Whether |x − x̂| is at most half a step (scale, times the largest gap of its levels) up to the rounding of the
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
    def calibrated_on(self) -> Mapping[str, Any] | None:
        """Of a calibrated quantizer, which text it has seen: name, sha256, token_sha256."""
        return None

    @property
    def grouping(self) -> Grouping:
        """Which elements clipping takes together."""
        return Grouping("token", "all")

    def check(self, channels: int) -> None:  # noqa: B027 (most quantizers take any width)
        """Raise ValueError where heads of `channels` channels cannot be encoded."""


@dataclass(frozen=True)
class TensorScheme:
    """How keys, or values, are stored.

    keep_recent: newest tokens that stay exact; flush_every: block length in tokens, by default one token group;
    sink_tokens: first tokens that stay exact.
    """

    quantizer: Quantizer
    keep_recent: int = 0
    flush_every: int = 0  # 0: one token group
    sink_tokens: int = 0

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

    def packed_tokens(self, length: int) -> int:
        """How many of `length` tokens are quantized: the state depends on the length alone."""
        return max(0, (length - self.sink_tokens - self.keep_recent) // self.flush_every * self.flush_every)


@dataclass(frozen=True)
class Scheme:
    """The whole recipe. `name` is the canonical spec: parse_scheme(scheme.name) == scheme.

    layers: (index, scheme) of the layers that are stored in another way; until `bind`, −1 is the last layer. fitted_on:
    the texts that a map of layers was fitted on, as the map names them; those of quantizers come beside them in
    `calibrated_on`.
    """

    name: str
    key: TensorScheme
    value: TensorScheme
    layers: tuple[tuple[int, "Scheme"], ...] = ()
    fitted_on: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)  # part of the map, and so of its hash

    def for_layer(self, index: int) -> "Scheme":
        """How one layer is stored."""
        return dict(self.layers).get(index) or (replace(self, layers=()) if self.layers else self)

    def bind(self, layers: int, stored: Collection[int], rotary: Callable[[int], Rotary] | None = None) -> "Scheme":
        """The scheme for a model of so many layers: every quantizer that asks for its place has it.

        stored: the layers whose whole cache is stored; rotary: the rotary embedding of a layer. ValueError where the
        scheme would quantize a layer that there is not, or leaves none to quantize, or needs a rotary embedding and none
        is given.
        """
        named = {index if index >= 0 else index + layers: scheme for index, scheme in self.layers}
        unknown = [
            i for i, scheme in named.items() if i not in stored and (scheme.quantized_sides or i >= layers or i < 0)
        ]
        if unknown:
            raise UserError(
                f"scheme {self.name} names layer {unknown[0]}, which the model has not, or not with a full cache"
            )
        if self.quantized_sides and not any(named.get(i, replace(self, layers=())).quantized_sides for i in stored):
            raise UserError(f"scheme {self.name} leaves all {len(stored)} layers of the model exact")
        if any(side.quantizer.needs_place for one in self.variants for side in one.sides.values()):
            whole = replace(self, layers=())
            named = {i: _placed(named.get(i, whole), i, rotary) for i in stored}
        found = tuple(sorted(named.items(), key=lambda item: item[0]))
        return self if found == self.layers else replace(self, layers=found)

    @property
    def sides(self) -> dict[str, TensorScheme]:
        return {"key": self.key, "value": self.value}

    @property
    def variants(self) -> "list[Scheme]":
        """What may occur in a layer: the scheme itself, and those of the layers that differ."""
        return [self, *(scheme for _, scheme in self.layers)]

    @property
    def lossless(self) -> bool:
        return not self.quantized_sides

    @property
    def quantized_sides(self) -> list[str]:
        """ "key", "value", or both: what some layer does not keep exactly."""
        return [side for side in self.sides if not all(one.sides[side].quantizer.lossless for one in self.variants)]

    @property
    def calibrated_on(self) -> list[Mapping[str, Any]]:
        """Which texts its quantizers have seen, and its maps of layers were fitted on: name, sha256 of the text,
        token_sha256 of its tokens, and whatever else the file says of it."""
        seen = [side.quantizer.calibrated_on for one in self.variants for side in one.sides.values()]
        return [text for text in seen if text is not None] + [text for one in self.variants for text in one.fitted_on]

    def check(self, channels: int, value_channels: int | None = None) -> None:
        """Raise ValueError where heads of `channels` channels (values: of `value_channels`, if these are others) cannot be
        encoded."""
        widths = {"key": channels, "value": value_channels or channels}
        for scheme in self.variants:
            for name, side in scheme.sides.items():
                try:
                    side.quantizer.check(widths[name])
                except ValueError as error:
                    raise UserError(
                        f"scheme {scheme.name}, {name}s with {widths[name]} channels a head: {error}"
                    ) from None


def _placed(scheme: Scheme, layer: int, rotary: Callable[[int], Rotary] | None) -> Scheme:
    sides = {
        name: replace(
            side, quantizer=side.quantizer.bind(Place(layer, name, rotary(layer) if rotary else None, side.sink_tokens))
        )
        for name, side in scheme.sides.items()
    }
    return replace(scheme, **sides)
