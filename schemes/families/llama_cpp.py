"""llama.cpp's quantized KV cache: channels rotated by a Hadamard matrix, then a ggml format."""

from dataclasses import dataclass
from typing import Literal

import torch

from schemes.base import KV, TensorScheme
from schemes.family import Family
from schemes.ggml_blocks import GGMLQuantizer
from schemes.rotation import rotate
from schemes.wrapping import Decoded, WrappedTensor, Wrapper

Type = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

LEAST = 64
"""Channels of the smallest rotation; heads whose width it does not divide are stored as they are."""


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
    """The inner quantizer on channels rotated in runs: of 64, or ("largest") of the largest power of two, at least 64,
    that divides the width of the head. A head that 64 does not divide is not rotated."""

    run: Literal["least", "largest"] = "least"

    @property
    def constants(self) -> bool | str:
        return "a constant vector is no constant after the rotation"

    def quantize(self, x: KV) -> RotatedRunsTensor:
        channels = x.shape[3]
        width = 0 if channels % LEAST else LEAST if self.run == "least" else channels & -channels
        return RotatedRunsTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(rotated(x.float(), width) if width else x),
            width=width,
        )


def llama_cpp(*, key_type: Type = "q8_0", value_type: Type = "q8_0") -> tuple[TensorScheme, TensorScheme]:
    """The types of --cache-type-k and --cache-type-v."""
    key, value = (GGMLQuantizer(type, "first") for type in (key_type, value_type))
    return TensorScheme(RotatedRunsQuantizer(key, run="largest")), TensorScheme(RotatedRunsQuantizer(value))


FAMILY = Family(
    llama_cpp,
    "keys and values rotated by a Hadamard matrix, then a ggml format",
    "llama.cpp since April 2026, its pull request 21038",
    formula="y = x·H in runs of channels: keys the largest power of two that divides the width, values 64; none where 64 "
    "does not divide it. Then blocks of 32 as in the format's own family (iq4_nl: the codes that its scale is fitted to). "
    "Bits: those of the format, 4.5 for q4_0 and iq4_nl.",
    good="what llama.cpp does with -ctk q4_0 -ctv q4_0; a loud channel no longer sets the scale of its block alone.",
    fails="widths that 64 does not divide, such as 80 or 96: they stay unrotated. LLAMA_ATTN_ROT_DISABLE=1 is the bare format.",
    compared="the block functions of ik_llama.cpp's copy of ggml after its Hadamard matrix, compiled and run on real keys and "
    "values: equal codes up to rounding ties. Departs: llama.cpp multiplies by a matrix, in another order of sums, and a "
    "GPU may fuse multiply and add.",
    called="llama.cpp",
)
