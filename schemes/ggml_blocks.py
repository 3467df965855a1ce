"""The block formats that the KV caches of ggml (llama.cpp, ik_llama.cpp) offer, bit for bit."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kvdelta.schemes.affine import level_bounds, level_table, nearest, stored_offset
from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.grouping import Grouping
from kvdelta.schemes.wrapping import in_range

Format = Literal["q8_0", "q6_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
Rule = Literal["nearest", "first"]
Blocks = Float[Tensor, "batch heads tokens blocks 32"]
Codes = UInt8[Tensor, "batch heads tokens blocks 32"]
Each = Float[Tensor, "batch heads tokens blocks 1"]

SIZE = 32  # channels of a block
BITS = {"q8_0": 8, "q6_0": 6, "q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "iq4_nl": 4}
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_LEVELS = tuple(float(level) for level in IQ4_NL)


@dataclass(frozen=True, kw_only=True, eq=False)
class GGMLTensor(QuantizedTensor):
    """codes as ggml orders them inside a block: the bits above the fourth first, then low and high halves of the block
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
    ggml's order. iq4_nl: the scale is the least-squares one, weighted by x², of the codes that ggml starts from; codes
    says whether those are kept ("first", as ggml does), or the nearest level for the stored scale is taken."""

    format: Format
    codes: Rule = "nearest"

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
            codes, scale = _iq4_nl(blocks, self.codes)
        elif self.format in ("q4_0", "q5_0", "q6_0"):
            codes, scale = _without_minimum(blocks, BITS[self.format])
        else:
            codes, scale, minimum = _with_minimum(blocks, BITS[self.format])
        return GGMLTensor(
            tokens=x.shape[2],
            tokens_per_group=1,
            dtype=x.dtype,
            codes=codes if self.format == "q8_0" else _packed(codes, BITS[self.format]),
            scale=stored_offset(
                scale
            ),  # of numbers that are larger than a cache of float16 has them, ggml makes infinities
            minimum=None if minimum is None else stored_offset(minimum),
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


def _iq4_nl(x: Blocks, rule: Rule) -> tuple[Codes, Each]:
    start = _signed_largest(x) / IQ4_NL[0]
    bounds = level_bounds(_LEVELS, x.device)
    scaled = (x * _inverse(start)).contiguous()
    first = torch.bucketize(scaled, bounds, right=True)  # of two equally near levels ggml takes the upper
    level, weight = level_table(_LEVELS, x.device)[first], x.square()
    scale = (weight * level * x).sum(-1, keepdim=True) / (weight * level.square()).sum(-1, keepdim=True)
    scale = torch.where(scale.isfinite(), scale, start)  # squares beyond float32, or under it
    stored = stored_offset(torch.where(start == 0, 0.0, scale)).float()
    return first.to(torch.uint8) if rule == "first" else nearest(x * _inverse(stored), _LEVELS), stored


def _packed(codes: Codes, bits: int) -> UInt8[Tensor, "batch heads tokens blocks bytes"]:
    low, high = (codes & 15).chunk(2, dim=-1)
    nibbles = low | (high << 4)
    if bits == 4:
        return nibbles
    high = codes >> 4
    if bits == 5:
        places = torch.arange(8, dtype=torch.uint8, device=codes.device)
        return torch.cat([(high.unflatten(-1, (4, 8)) << places).sum(-1).to(torch.uint8), nibbles], dim=-1)
    pairs = high.unflatten(-1, (4, 8)) << _pair_places(codes.device)
    return torch.cat([pairs.sum(-2).to(torch.uint8), nibbles], dim=-1)


def _unpacked(packed: UInt8[Tensor, "batch heads tokens blocks bytes"], bits: int) -> Codes:
    nibbles = packed[..., -SIZE // 2 :]
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=-1)
    if bits == 4:
        return codes
    if bits == 5:
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        return codes | (((packed[..., :4, None] >> places) & 1).flatten(-2) << 4)
    return codes | (((packed[..., None, :8] >> _pair_places(packed.device)) & 3).flatten(-2) << 4)


def _pair_places(device: torch.device) -> UInt8[Tensor, "4 1"]:
    """Where the two upper bits of each quarter of a block of q6_0 lie in its eight bytes."""
    quarter = torch.arange(4, dtype=torch.uint8, device=device)[:, None]
    return (quarter & 1) * 4 + (quarter >> 1) * 2  # 0, 4, 2, 6, without a copy to the device
