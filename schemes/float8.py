"""Tensors of 8-bit floats, with a scale a tensor, head or token, or none."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kvdelta.schemes.affine import stored_scale
from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer
from kvdelta.schemes.grouping import require_whole_groups
from kvdelta.schemes.wrapping import in_range

Format = Literal["e4m3", "e5m2"]
Scale = Literal["none", "tensor", "head", "token"]

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
HALF_STEP = {"e4m3": 16.0, "e5m2": 4096.0}  # of the largest numbers, 448 and 57344


class Count:
    """How many numbers saturated, where they were counted: of the encoding, not a part of what is stored."""

    def __init__(self, numbers: Int[Tensor, ""]):
        self.numbers = numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Tensor(QuantizedTensor):
    """codes: the bits of the floats; top: the absmax that became the largest float, float16
    [batch, heads or 1, token groups, 1], or none (its quotient by the largest float would be subnormal)."""

    codes: UInt8[Tensor, "batch heads token_groups numbers"]
    top: Float[Tensor, "batch heads_or_1 token_groups 1"] | None
    channels: int
    format: Format
    beyond: Count

    def dequantize(self) -> KV:
        x = self.codes.view(DTYPES[self.format]).float()
        x = x if self.top is None else x * _scale(self.top, self.format)
        return in_range(x.unflatten(-1, (-1, self.channels)).flatten(2, 3)[:, :, : self.tokens], self.dtype)

    @property
    def saturated(self) -> Tensor:
        return self.beyond.numbers


def _scale(top: Tensor, format: Format) -> Tensor:
    return top.float() * (1.0 / torch.finfo(DTYPES[format]).max)


@dataclass(frozen=True)
class Fp8Quantizer(Quantizer):
    """code = the nearest 8-bit float of x / scale, scale = absmax / the largest float, over one token of a head
    ("token"), a head of a block ("head"), or a block ("tensor"). Numbers beyond the largest float become it, and are
    counted: those that would have rounded to something larger."""

    format: Format = "e4m3"
    scale: Scale = "token"
    block: int = 1

    @property
    def constants(self) -> bool | str:
        return "without a scale a constant falls between two floats" if self.scale == "none" else True

    @property
    def tokens_per_group(self) -> int:
        return self.block

    @property
    def independent(self) -> bool | str:
        return "one scale for all heads of a block" if self.scale == "tensor" else True

    def quantize(self, x: KV) -> Fp8Tensor:
        require_whole_groups(x.shape[2], self.block)
        flat = x.float().unflatten(2, (-1, self.block)).flatten(3, 4)
        largest = torch.finfo(DTYPES[self.format]).max
        top = None
        if self.scale != "none":
            dims = (1, 3) if self.scale == "tensor" else (3,)
            top = flat.abs().amax(dims, keepdim=True)
            top = stored_scale(torch.where(top == 0, 1.0, top))
            flat = flat / _scale(top, self.format)
        beyond = Count((flat.abs() >= largest + HALF_STEP[self.format]).sum())
        codes = flat.clamp(-largest, largest).to(DTYPES[self.format]).view(torch.uint8)
        return Fp8Tensor(
            tokens=x.shape[2],
            tokens_per_group=self.block,
            dtype=x.dtype,
            codes=codes,
            top=top,
            channels=x.shape[3],
            format=self.format,
            beyond=beyond,
        )
