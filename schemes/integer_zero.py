"""An integer zero: x̂ = (code − zero) · scale, so that 0 is rebuilt exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import FLOAT16_TINY, AffineQuantizer, QParams, stored_scale

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
