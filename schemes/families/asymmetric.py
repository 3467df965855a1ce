"""Asymmetric uniform quantization with a float or an integer zero."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from schemes.affine import FLOAT16_TINY, AffineQuantizer, MinMaxQuantizer, QParams, stored_scale
from schemes.base import TensorScheme
from schemes.family import Family
from schemes.grouping import Axis, GroupSize

Bits = Literal[1, 2, 3, 4, 8]

INT16_MAX = 32767
LARGEST_ZERO = 32750  # leaves room for a float16 scale, rounded down, to raise the zero


@dataclass(frozen=True)
class IntegerZeroQuantizer(AffineQuantizer):
    """Integer zero: scale = (max − min)/(2^b − 1), zero = round(−min/scale), code = clamp(round(x/scale) + zero)
    (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456).

    The zero is stored in 16 bits. Where a group is nearly constant and far from 0 it would not fit; the scale is
    then raised to absmax/32750 and half of float16's least step, so that the zero fits after the scale is rounded too;
    it rebuilds the group to about the precision of float16 (ours).
    """

    @property
    def kernel(self) -> tuple[str, tuple]:
        return "whole-zero", ()

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        low, high = torch.aminmax(groups, dim=-1)
        largest = torch.maximum(low.abs(), high.abs())
        least = largest * (1.0 / LARGEST_ZERO) + FLOAT16_TINY / 2
        scale = torch.maximum((high - low) * self.step_of_range, least)
        scale = stored_scale(torch.where(largest == 0, 1.0, scale))
        zero = (-low / scale.float()).round_().clamp_(-INT16_MAX, INT16_MAX)
        return QParams(scale, zero=zero.to(torch.int16))


def asymmetric(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    key_axis: Axis = "token",
    value_axis: Axis = "token",
    group_size: GroupSize = 64,
    zero: Literal["float", "integer"] = "float",
) -> tuple[TensorScheme, TensorScheme]:
    quantizer = MinMaxQuantizer if zero == "float" else IntegerZeroQuantizer
    return (
        TensorScheme(quantizer(key_bits, group_size, key_axis)),
        TensorScheme(quantizer(value_bits, group_size, value_axis)),
    )


FAMILY = Family(
    asymmetric,
    "asymmetric uniform, scale = (max−min)/(2^b−1), zero = min (float) or round(−min/scale) (integer)",
    "Liu et al. 2024, arXiv 2402.02750 (float zero); Ashkboos et al. 2024, arXiv 2404.00456 (integer zero)",
    formula="float zero: s = (max − min)/(2^b − 1), code = round((x − min)/s), x̂ = code·s + min; integer zero: x̂ = (code − z)·s, z = round(−min/s). Bits: b + 32/G.",
    good="the plain grid to compare others with; key_axis=channel holds loud channels of keys apart.",
    fails="per-token groups over loud channels of keys at 2 and 3 bits; per-channel groups of values.",
    short={f"asym{bits}": {"bits": bits} for bits in (1, 2, 3, 4, 8)},
)
