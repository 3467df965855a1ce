"""The block formats of ggml (llama.cpp) that its KV cache offers, bit for bit: q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from schemes.affine import level_table, nearest
from schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme
from schemes.errors import UserError
from schemes.family import Family
from schemes.grouping import Grouping
from schemes.wrapping import in_range

Format = Literal["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
Blocks = Float[Tensor, "batch heads tokens blocks 32"]
Codes = UInt8[Tensor, "batch heads tokens blocks 32"]
Each = Float[Tensor, "batch heads tokens blocks 1"]

SIZE = 32  # channels of a block
BITS = {"q8_0": 8, "q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "iq4_nl": 4}
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_LEVELS = tuple(float(level) for level in IQ4_NL)


@dataclass(frozen=True, kw_only=True, eq=False)
class GGMLTensor(QuantizedTensor):
    """codes as ggml orders them inside a block: for 5 bits the fifth bits first, then low and high halves of the block
    in the nibbles; q8_0 are signed bytes. scale (d) and, with an offset, minimum (m): float16, one a block."""

    codes: UInt8[Tensor, "batch heads tokens blocks bytes"]
    scale: Each
    minimum: Each | None
    format: Format

    def dequantize(self) -> KV:
        if self.format == "q8_0":
            x = self.codes.view(torch.int8).float()
        else:
            codes = _unpacked(self.codes, BITS[self.format])
            if self.format == "iq4_nl":
                x = level_table(_LEVELS, codes.device)[codes.int()]
            elif self.minimum is not None:
                x = codes.float()
            else:
                x = codes.float() - 2 ** (BITS[self.format] - 1)
        x = x * self.scale.float()
        if self.minimum is not None:
            x = x + self.minimum.float()
        return in_range(x.flatten(-2)[:, :, : self.tokens], self.dtype)

    def blocks(self) -> UInt8[Tensor, "batch heads tokens bytes"]:
        """The bytes of the tokens as a GGUF file would have them."""
        fields = [self.scale, *([] if self.minimum is None else [self.minimum])]
        return torch.cat([*(x.contiguous().view(torch.uint8) for x in fields), self.codes], dim=-1).flatten(-2)


@dataclass(frozen=True)
class GGMLQuantizer(Quantizer):
    """Blocks of 32 channels of one token. Codes come from the float32 scale, which is rounded to float16 afterwards:
    ggml's order. iq4_nl: the nearest level for the stored scale, which is the least-squares one, weighted by x², of
    the codes that ggml starts from (ggml keeps those codes)."""

    format: Format

    @property
    def grouping(self) -> Grouping:
        return Grouping("token", SIZE)

    def check(self, channels: int) -> None:
        if channels % SIZE:
            raise UserError(f"{channels} channels do not divide into ggml's blocks of {SIZE}")

    def quantize(self, x: KV) -> GGMLTensor:
        self.check(x.shape[3])
        blocks = x.float().unflatten(-1, (-1, SIZE))
        minimum = None
        if self.format == "q8_0":
            codes, scale = _q8_0(blocks)
        elif self.format == "iq4_nl":
            codes, scale = _iq4_nl(blocks)
        elif self.format in ("q4_0", "q5_0"):
            codes, scale = _without_minimum(blocks, BITS[self.format])
        else:
            codes, scale, minimum = _with_minimum(blocks, BITS[self.format])
        return GGMLTensor(
            tokens=x.shape[2],
            tokens_per_group=1,
            dtype=x.dtype,
            codes=codes if self.format == "q8_0" else _packed(codes, BITS[self.format]),
            scale=scale.half(),
            minimum=None if minimum is None else minimum.half(),
            format=self.format,
        )


def _inverse(scale: Each) -> Each:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def _divided(x: Each, by: float) -> Each:
    return x / x.new_full((1,), by)  # by a tensor: CUDA multiplies by the reciprocal of a plain number


def _signed_largest(x: Blocks) -> Each:
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _q8_0(x: Blocks) -> tuple[Codes, Each]:
    scale = _divided(x.abs().amax(-1, keepdim=True), 127.0)
    scaled = x * _inverse(scale)
    away = scaled.abs()
    away = away.floor() + (2 * (away - away.floor())).floor()  # half away from zero, as C's roundf
    return (away * scaled.sign()).to(torch.int8).view(torch.uint8), scale


def _without_minimum(x: Blocks, bits: int) -> tuple[Codes, Each]:
    middle = 2 ** (bits - 1)
    scale = _signed_largest(x) / -middle  # a power of two: exact
    return (x * _inverse(scale) + (middle + 0.5)).trunc().clamp(0, 2 * middle - 1).to(torch.uint8), scale


def _with_minimum(x: Blocks, bits: int) -> tuple[Codes, Each, Each]:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = _divided(high - low, 2**bits - 1.0)
    codes = ((x - low) * _inverse(scale) + 0.5).trunc().clamp(0, 2**bits - 1).to(torch.uint8)
    return codes, scale, low


def _iq4_nl(x: Blocks) -> tuple[Codes, Each]:
    start = _signed_largest(x) / IQ4_NL[0]
    level = level_table(_LEVELS, x.device)[nearest(x * _inverse(start), _LEVELS).int()]
    weight = x.square()
    scale = (weight * level * x).sum(-1, keepdim=True) / (weight * level.square()).sum(-1, keepdim=True)
    stored = torch.where(start == 0, 0.0, scale).half().float()
    return nearest(x * _inverse(stored), _LEVELS), stored


def _packed(codes: Codes, bits: int) -> UInt8[Tensor, "batch heads tokens blocks bytes"]:
    low, high = (codes & 15).chunk(2, dim=-1)
    nibbles = low | (high << 4)
    if bits == 4:
        return nibbles
    fifth = (codes >> 4).unflatten(-1, (4, 8)) << torch.arange(8, dtype=torch.uint8, device=codes.device)
    return torch.cat([fifth.sum(-1).to(torch.uint8), nibbles], dim=-1)


def _unpacked(packed: UInt8[Tensor, "batch heads tokens blocks bytes"], bits: int) -> Codes:
    nibbles = packed[..., -SIZE // 2 :]
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=-1)
    if bits == 4:
        return codes
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return codes | (((packed[..., :4, None] >> places) & 1).flatten(-2) << 4)


def _both(format: Format) -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(GGMLQuantizer(format)), TensorScheme(GGMLQuantizer(format))


_SOURCE = (
    "ggml (llama.cpp), ggml-quants.c; cache types of the same names, which llama.cpp rotates first since April 2026 (its pull "
    "request 21038): hadamard(q4_0) is nearer to that"
)
_SYMMETRIC = (
    "d = (signed number of largest magnitude)/−2^(b−1), code = trunc(x/d + 2^(b−1) + ½), x̂ = (code − 2^(b−1))·d"
)
_OFFSET = "d = (max − min)/(2^b − 1), m = min, code = trunc((x − m)/d + ½), x̂ = code·d + m"
_KEYS = "keys with loud channels: a block is 32 neighbouring channels of one token, loud ones among them."


def _family(format: Format, summary: str, formula: str, good: str, fails: str = _KEYS) -> Family:
    return Family(partial(_both, format), summary, _SOURCE, formula, good, fails, called=format)


FAMILIES = (
    _family(
        "q8_0", "ggml format, unrotated: 8 bits, symmetric, blocks of 32 channels",
        formula="d = absmax/127, code = round(x/d), x̂ = code·d. Bits: 8 + 16/32.",
        good="everywhere: 16 windows do not tell its loss from 0.", fails="it is twice as large as what 4 bits need.",
    ),
    _family(
        "q4_0", "ggml format, unrotated: 4 bits without offset, blocks of 32 channels",
        formula=f"{_SYMMETRIC}. Bits: 4 + 16/32.", good="values; all 16 codes are used, unlike narrow symmetric.",
    ),
    _family(
        "q4_1", "ggml format, unrotated: 4 bits with offset, blocks of 32 channels",
        formula=f"{_OFFSET}. Bits: 4 + 32/32.", good="what asymmetric:group_size=32 does, in ggml's layout.",
    ),
    _family(
        "q5_0", "ggml format, unrotated: 5 bits without offset, blocks of 32 channels",
        formula=f"{_SYMMETRIC}. Bits: 5 + 16/32.", good="between 4 and 8 bits, where 4 cost too much.",
    ),
    _family(
        "q5_1", "ggml format, unrotated: 5 bits with offset, blocks of 32 channels",
        formula=f"{_OFFSET}. Bits: 5 + 32/32.", good="keys with an offset, at 6 bits.",
    ),
    _family(
        "iq4_nl", "ggml format, unrotated: 4 bits, 16 uneven levels, blocks of 32 channels",
        formula="x̂ = level·d, the nearest of 16 levels from −127 to 113; d by least squares, weighted by x². Bits: 4 + 16/32.",
        good="bell-shaped blocks: values, rotated keys.",
    ),
)  # fmt: skip
