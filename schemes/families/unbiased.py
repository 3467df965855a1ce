"""Subtract from keys what the bias of their projection put there, before the inner scheme; add it on read."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.base import KV, Place, Quantizer, Rotary, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper, wrap

UNBOUND = "unbiased works with a model's layers: use it through SchemeCache.for_model(scheme, model), or bind the scheme first"


@dataclass(frozen=True, kw_only=True, eq=False)
class UnbiasedTensor(WrappedTensor):
    """start: the position of the first token."""

    start: int
    quantizer: "BoundUnbiased"

    def restore(self, x: Decoded) -> Decoded:
        return x + self.quantizer.constant(x, self.start)

    def without_first(self, groups: int) -> Self:
        return replace(super().without_first(groups), start=self.start + groups * self.tokens_per_group)


@dataclass(frozen=True)
class UnbiasedQuantizer(Wrapper):
    """Of no layer yet."""

    needs_place: ClassVar[bool] = True

    def quantize(self, x: KV) -> UnbiasedTensor:
        raise UserError(UNBOUND)

    def bind(self, place: Place) -> Quantizer:
        """The inner one, where the layer's keys have no bias."""
        if place.find_key_bias is None:
            raise UserError(UNBOUND)
        bias = place.find_key_bias(place.layer)
        if bias is None:
            return self.inner
        if place.rotary is None:
            raise UserError(UNBOUND)
        return BoundUnbiased(inner=self.inner, block=self.block, layer=place.layer, bias=bias, rotary=place.rotary)


@dataclass(frozen=True, kw_only=True)
class BoundUnbiased(Wrapper):
    """Of one layer: the bias [heads, channels] of its key projection, and its rotary embedding. What it takes away depends on the
    position alone, so nothing of it is stored."""

    layer: int
    bias: Float[Tensor, "heads channels"] = field(compare=False, repr=False)
    rotary: Rotary = field(compare=False, repr=False)

    needs_place: ClassVar[bool] = True

    @property
    def independent(self) -> bool | str:
        return "the bias is that of a head"

    @property
    def heads_independent(self) -> bool | str:
        return self.inner.heads_independent

    @property
    def appends(self) -> bool | str:
        return "the rotation is that of a position: `quantize_at` is told it"

    @property
    def constants(self) -> bool | str:
        return "a constant less the bias is none"

    def constant(self, like: KV, start: int) -> Float[Tensor, "1 heads tokens channels"]:
        """What the bias contributes to the keys of tokens `like`, from position `start` on: float32."""
        tokens = like.shape[2]
        return self.rotary.rotate(self.bias.to(like.device).float()[None, :, None].expand(1, -1, tokens, -1), start)

    def quantize(self, x: KV) -> UnbiasedTensor:
        return self.quantize_at(x, 0)

    def quantize_at(self, x: KV, start: int) -> UnbiasedTensor:
        if x.shape[1:4:2] != self.bias.shape:
            raise UserError(
                f"layer {self.layer} has a key bias of {tuple(self.bias.shape)} heads and channels, and caches "
                f"{tuple(x.shape[1:4:2])}"
            )
        return UnbiasedTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(x.float() - self.constant(x, start)),
            start=start,
            quantizer=self,
        )


def unbiased(key: TensorScheme, value: TensorScheme) -> tuple[TensorScheme, TensorScheme]:
    return wrap(key, value, "key", UnbiasedQuantizer)


FAMILY = Family(
    unbiased,
    "wrapper: the inner scheme on keys less what the bias of their projection contributes",
    "kvdelta; that low-bit keys fail on Qwen2 and 2.5 for this bias was observed in ggml-org/llama.cpp, issue 21385 (2026)",
    formula="k ← k − R(p) b, with b the bias of the key projection and R(p) the rotation at position p; k̂ = inner + R(p) b. Bits: "
    "those of the inner scheme: b is the model's.",
    good="models whose key projection has a bias (Qwen2 and 2.5), which makes some channels loud and constant before the rotation: "
    "per-token groups and rotations no longer spread them over the others.",
    fails="a model without such a bias has the inner scheme, bit for bit; one whose bias does not reach the cache as it is (Phi's, in one "
    "projection with Q and V; a norm behind it) is refused. Per-channel groups gain least: the rotation turns slowly in most channels.",
    compared="with no published code: removing it is exact up to the rounding of one float32 addition. PrismML-Eng/llama.cpp, pull "
    "request 51 (2026), subtracts a measured mean of the cached keys, the same at every position, and never adds it, since attention "
    "does not depend on it; here it turns with the position, and is added again",
)
