"""MXFP4: 4-bit floats (e2m1) in groups of 32 with a power of two as scale."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from schemes.affine import AffineQuantizer, QParams
from schemes.base import TensorScheme
from schemes.e2m1 import LEVELS, MAX_CODE, UNBOUNDED
from schemes.family import Family


@dataclass(frozen=True)
class MXFP4Quantizer(AffineQuantizer):
    """scale = 2^(⌊log2 amax⌋ − 2), stored as 8 bits of exponent; what lies beyond 6 · scale saturates."""

    @property
    def max_code(self) -> int:
        return MAX_CODE

    @property
    def bounded(self) -> bool | str:
        return UNBOUNDED

    @property
    def constants(self) -> bool | str:
        return "the scale is a power of two"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        largest = torch.linalg.vector_norm(groups, float("inf"), dim=-1)
        _, exponent = torch.frexp(largest.clamp(min=2.0**-120))  # largest = m · 2^exponent, ½ ≤ m < 1
        scale = torch.ldexp(torch.ones_like(largest), exponent - 3)
        return QParams(scale.to(torch.float8_e8m0fnu), levels=LEVELS)


def mxfp4() -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(MXFP4Quantizer(4, 32)), TensorScheme(MXFP4Quantizer(4, 32))


FAMILY = Family(
    mxfp4,
    "4-bit floats (e2m1) of one token, groups of 32 channels, scale a power of two",
    "Open Compute Project 2023, Microscaling Formats (MX) 1.0; Rouhani et al. 2023, arXiv 2310.10537",
    formula="x̂ = level·2^e, levels ±{0, .5, 1, 1.5, 2, 3, 4, 6}, e = ⌊log2 amax⌋ − 2. Bits: 4 + 8/32.",
    good="hardware that multiplies it; any range: the exponent has 8 bits.",
    fails="a scale that is a power of two wastes up to half the range or saturates amax: error .115 on normal data, where "
    "4.25 bits of symmetric integers with groups of 64 have .108.",
)
