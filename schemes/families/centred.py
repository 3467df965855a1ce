"""Subtract the mean of each channel before the inner scheme, and add it on read."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import stored_offset
from kvdelta.schemes.base import KV, TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.wrapping import Decoded, Sides, WrappedTensor, Wrapper, unblocked, wrap


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredTensor(WrappedTensor):
    mean: Float[Tensor, "batch heads blocks channels"]

    def restore(self, x: Decoded) -> Decoded:
        return x + self.mean.float().repeat_interleave(self.tokens_per_group, dim=2)


@dataclass(frozen=True)
class CentredQuantizer(Wrapper):
    """The inner quantizer on x − mean; one mean a head and channel over a block of tokens, float16."""

    def quantize(self, x: KV) -> CentredTensor:
        blocks = self.blocks(x)
        mean = stored_offset(blocks.mean(-1))
        return CentredTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(unblocked(blocks - mean.float()[..., None])),
            mean=mean,
        )


def centred(
    key: TensorScheme, value: TensorScheme, *, sides: Sides = "key", block: int = 128
) -> tuple[TensorScheme, TensorScheme]:
    return wrap(key, value, sides, lambda inner: CentredQuantizer(inner, block))


FAMILY = Family(
    centred,
    "wrapper: the inner scheme on keys minus the mean of each channel over a block of tokens",
    "mean subtraction as in Zhang et al. 2024 (SageAttention), arXiv 2410.02367; here over blocks, so that it appends",
    formula="x ← x − m with m the float16 mean of a (head, channel) over `block` tokens; x̂ = inner + m. Bits: 16/block.",
    good="keys whose channels have a constant offset: per-token groups no longer span it. Best with hadamard around it "
    "(hadamard inside centred: the mean goes first).",
    fails="a block of `block` tokens must fill first, so up to that many stay exact. Adds nothing to per-channel groups, "
    "whose own offset is the same thing.",
    compared="with no published reference: SageAttention takes away one mean of all keys, and never adds it; tested against its formula, "
    "the inner scheme on x − m plus m.",
)
