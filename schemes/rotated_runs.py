"""Channels rotated by a Hadamard matrix in runs, each by itself."""

from dataclasses import dataclass
from typing import Literal

import torch

from kvdelta.schemes.base import KV
from kvdelta.schemes.rotation import rotate
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper


def rotated(x: KV, width: int, back: bool = False, dtype: torch.dtype | None = None) -> KV:
    """Each run of `width` channels times the normalised Hadamard matrix, which is its own inverse."""
    batch, heads, tokens, channels = x.shape
    runs = x.reshape(batch, heads, tokens * (channels // width), width)
    return rotate(runs, "hadamard", 0, back, dtype).reshape(x.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedRunsTensor(WrappedTensor):
    width: int

    def restore(self, x: Decoded) -> Decoded:
        return rotated(x, self.width, back=True) if self.width else x


@dataclass(frozen=True)
class RotatedRunsQuantizer(Wrapper):
    """The inner quantizer on channels rotated in runs of `least`, or ("largest") of the largest power of two that divides
    the width of the head. A head that `least` does not divide is not rotated."""

    least: int = 64
    run: Literal["least", "largest"] = "least"

    @property
    def constants(self) -> bool | str:
        return "a constant vector is no constant after the rotation"

    def quantize(self, x: KV) -> RotatedRunsTensor:
        channels = x.shape[3]
        width = 0 if channels % self.least else self.least if self.run == "least" else channels & -channels
        return RotatedRunsTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(rotated(x.float(), width) if width else x),
            width=width,
        )
