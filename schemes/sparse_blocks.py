"""The largest numbers of a block kept beside the codes: value and place."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kvdelta.schemes.affine import stored_offset
from kvdelta.schemes.base import KV
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper, unblocked

BYTE, WORD = 256, 65536  # places that 8 and 16 bits can name


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseTensor(WrappedTensor):
    """outlier_value float16 and outlier_index, uint8 or int16 (read as unsigned): [batch, heads, blocks, count]; an
    index counts through a block [channels, tokens]."""

    outlier_value: Float[Tensor, "batch heads blocks count"]
    outlier_index: Shaped[Tensor, "batch heads blocks count"]

    def restore(self, x: Decoded) -> Decoded:
        batch, heads, tokens, channels = x.shape
        size = self.tokens_per_group
        blocks = x.unflatten(2, (tokens // size, size)).transpose(3, 4).reshape(batch, heads, -1, channels * size)
        places = self.outlier_index.long() & (WORD - 1)
        blocks = blocks.scatter(-1, places, self.outlier_value.float())
        return unblocked(blocks.unflatten(-1, (channels, size)))


@dataclass(frozen=True)
class SparseQuantizer(Wrapper):
    """The largest |x| of each head and block in float16; the inner quantizer has the median of their line (the
    channel's over the block, or the token's where a block is one token) in their place."""

    fraction: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise UserError(f"fraction={self.fraction}: the share of numbers kept exactly is between 0 and 1")

    def check(self, channels: int) -> None:
        if channels * self.block > WORD:
            raise UserError(f"a block of {self.block} tokens and {channels} channels has more than {WORD} places")
        self.inner.check(channels)

    def quantize(self, x: KV) -> SparseTensor:
        blocks = self.blocks(x)
        flat = blocks.flatten(-2)
        count = max(1, round(self.fraction * flat.shape[-1]))
        places = flat.abs().topk(count, dim=-1).indices
        line = -1 if self.block > 1 else -2
        median = blocks.median(dim=line, keepdim=True).values.expand_as(blocks).flatten(-2)
        inliers = flat.scatter(-1, places, median.gather(-1, places)).view_as(blocks)
        return SparseTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(unblocked(inliers)),
            outlier_value=stored_offset(flat.gather(-1, places)),
            outlier_index=places.to(torch.uint8 if flat.shape[-1] <= BYTE else torch.int16),
        )
