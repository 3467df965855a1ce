"""PolarQuant: pairs of channels of the keys as radius and angle, each on a grid of its own."""

from dataclasses import dataclass, replace
from math import tau
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, MinMaxQuantizer, QParams, stored_offset, stored_scale
from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import Grouping
from kvdelta.schemes.wrapping import in_range

Bits = Literal[2, 3, 4]


@dataclass(frozen=True)
class CellQuantizer(AffineQuantizer):
    """The middle of one of 2^b equal cells from minimum to maximum: scale = (max − min)/2^b, offset = min + scale/2."""

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        low, high = torch.aminmax(groups, dim=-1)
        step = (high - low) * 2.0**-self.bits
        return QParams(stored_scale(torch.where(step == 0, 1.0, step)), offset=stored_offset(low + step / 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class PolarTensor(QuantizedTensor):
    radius: QuantizedTensor
    angle: QuantizedTensor

    @property
    def _both(self) -> dict[str, QuantizedTensor]:
        return {"radius": self.radius, "angle": self.angle}

    @property
    def code_parts(self) -> tuple[str, ...]:
        return ("radius codes", "angle codes")

    def parts(self) -> dict[str, Tensor]:
        return {f"{what} {name}": part for what, held in self._both.items() for name, part in held.parts().items()}

    def with_parts(self, parts: dict[str, Tensor], tokens: int) -> Self:
        groups = next(iter(parts.values())).shape[2]
        changed = {
            what: held.with_parts(
                {name: parts[f"{what} {name}"] for name in held.parts()}, groups * self.tokens_per_group
            )
            for what, held in self._both.items()
        }
        return replace(self, tokens=tokens, **changed)

    def dequantize(self) -> KV:
        radius, angle = (held.dequantize()[:, :, : self.tokens] for held in self._both.values())
        return in_range(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1), self.dtype)


@dataclass(frozen=True)
class PolarQuantizer(Quantizer):
    """Channel i and channel i + D/2, which rotary embeddings turn together, as radius and angle in [0, 2π), each per pair
    over groups of tokens."""

    radius: CellQuantizer
    angle: CellQuantizer

    @property
    def tokens_per_group(self) -> int:
        return self.radius.tokens_per_group

    @property
    def constants(self) -> bool | str:
        return "a constant is rebuilt from a rounded angle"

    @property
    def grouping(self) -> Grouping:
        return self.radius.grouping

    def check(self, channels: int) -> None:
        if channels % 2:
            raise UserError(f"{channels} channels do not divide into pairs")
        for part in (self.radius, self.angle):
            part.check(channels // 2)

    def quantize(self, x: KV) -> PolarTensor:
        self.check(x.shape[3])
        first, second = x.float().chunk(2, dim=-1)
        angle = torch.atan2(second, first)
        return PolarTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            radius=self.radius.quantize(torch.hypot(first, second)),
            angle=self.angle.quantize(torch.where(angle < 0, angle + tau, angle)),
        )


def polarquant(
    *, radius_bits: Bits = 4, angle_bits: Bits = 4, value_bits: Literal[2, 4, 8] = 4, group_size: int = 128
) -> tuple[TensorScheme, TensorScheme]:
    """Keys in groups of `group_size` tokens; values asymmetric per token over the whole head."""
    radius, angle = (CellQuantizer(bits, group_size, "channel") for bits in (radius_bits, angle_bits))
    return TensorScheme(PolarQuantizer(radius, angle)), TensorScheme(MinMaxQuantizer(value_bits, "all"))


FAMILY = Family(
    polarquant,
    "keys: pairs of channels as radius and angle, cells over groups of tokens; values: asymmetric per token",
    "Wu et al. 2025 (PolarQuant), arXiv 2502.00527",
    formula="r = √(x² + y²), φ = atan2(y, x) of channels i and i + D/2; code = ⌊(r − min)·2^b/(max − min)⌋, r̂ the middle of its "
    "cell, φ alike; x̂ = r̂·cos φ̂, ŷ = r̂·sin φ̂. Bits: K (r + t)/2 + 32/G, V b + 32/D.",
    good="keys after rotary embeddings: a pair of loud channels turns, but keeps its radius.",
    fails="pairs whose radius is near 0 or whose angles are everywhere: half of the bits of K are spent on the radius. A range of "
    "angles across 0 counts as a whole turn.",
    compared="with the published code (ericshwu/PolarQuant, 7fc65d8), its quantize_and_pack_nbit, run on real keys in float32: codes "
    "but for those near a boundary. Departs: codes are taken with the rounded scale and offset; values are exact there by "
    "default (only=key), or per token in groups of 128; the last block of a prompt, exact there, is quantized here.",
)
