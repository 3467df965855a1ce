"""The smallest and largest numbers of each vector kept beside the codes: value and place."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from kvdelta.schemes.affine import stored_offset
from kvdelta.schemes.base import KV
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.grouping import Axis, require_whole_groups
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper

BYTE, WORD = 256, 65536  # places that 8 and 16 bits can name

VECTORS: dict[Axis, str] = {"channel": "b h n d t", "token": "b 1 n t (h d)"}
"""By the axis of the inner groups: the channels of a head over a block of tokens, or the tokens over all heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorOutliersTensor(WrappedTensor):
    """outlier_value float16 and outlier_index, uint8 or int16 (read as unsigned): [batch, heads or 1, blocks, vectors,
    count]; an index counts through its vector."""

    outlier_value: Float[Tensor, "batch rows blocks vectors count"]
    outlier_index: Shaped[Tensor, "batch rows blocks vectors count"]
    axis: Axis

    def restore(self, x: Decoded) -> Decoded:
        shape = {"h": x.shape[1], "t": self.tokens_per_group}
        vectors = rearrange(x, f"b h (n t) d -> {VECTORS[self.axis]}", t=self.tokens_per_group)
        places = self.outlier_index.long() & (WORD - 1)
        vectors = vectors.scatter(-1, places, self.outlier_value.float())
        return rearrange(vectors, f"{VECTORS[self.axis]} -> b h (n t) d", **shape)


@dataclass(frozen=True)
class VectorOutliersQuantizer(Wrapper):
    """Of each vector the `fraction`/2 smallest and as many largest numbers, rounded down and at least one, in float16; the
    inner quantizer has the vector's mean in their place. A vector is what the groups of the inner quantizer are parts of: a
    channel over a block of tokens, or a token over all heads."""

    fraction: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise UserError(f"outliers={self.fraction}: the share of numbers kept exactly is between 0 and 1")

    @property
    def independent(self) -> bool | str:
        return self.inner.independent if self.grouping.axis == "channel" else "outliers of a token over all heads"

    def check(self, channels: int) -> None:
        if self.grouping.axis == "channel" and self.block < 2:
            raise UserError(
                "a channel of one token has no smallest and largest number; give a block of at least 2 tokens"
            )
        if self.grouping.axis == "channel" and self.block > WORD:
            raise UserError(f"a channel of a block of {self.block} tokens has more than {WORD} places")
        self.inner.check(channels)

    def quantize(self, x: KV) -> VectorOutliersTensor:
        require_whole_groups(x.shape[2], self.block)
        axis = self.grouping.axis
        vectors = rearrange(x.float(), f"b h (n t) d -> {VECTORS[axis]}", t=self.block)
        length = vectors.shape[-1]
        if length > WORD:
            raise UserError(f"a token of {length} channels over all heads has more than {WORD} places")
        count = max(1, int(self.fraction * length / 2))
        if count == 1:  # a GPU takes much longer for topk
            places = torch.stack([vectors.argmin(-1), vectors.argmax(-1)], dim=-1)
        else:
            places = torch.cat([vectors.topk(count, largest=False).indices, vectors.topk(count).indices], dim=-1)
        # in float64: the last bits of a sum depend on its shape, and parts must not depend on how many tokens came
        mean = vectors.double().mean(-1, keepdim=True).float()
        inliers = vectors.scatter(-1, places, mean.expand_as(places))
        inliers = rearrange(inliers, f"{VECTORS[axis]} -> b h (n t) d", h=x.shape[1], t=self.block)
        return VectorOutliersTensor(
            tokens=x.shape[2],
            tokens_per_group=self.block,
            dtype=x.dtype,
            inner=self.inner.quantize(inliers),
            outlier_value=stored_offset(vectors.gather(-1, places)),
            outlier_index=places.to(torch.uint8 if length <= BYTE else torch.int16),
            axis=axis,
        )
