"""NVFP4: 4-bit floats (e2m1) in groups of 16 with an 8-bit float as scale."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from schemes.affine import AffineQuantizer, QParams
from schemes.base import TensorScheme
from schemes.e2m1 import LARGEST, LEVELS, MAX_CODE, UNBOUNDED
from schemes.family import Family

SCALE_TINY, SCALE_MAX = 2.0**-9, 448.0  # of e4m3


@dataclass(frozen=True)
class NVFP4Quantizer(AffineQuantizer):
    """scale = amax/6, rounded to e4m3 and at least its smallest number."""

    @property
    def max_code(self) -> int:
        return MAX_CODE

    @property
    def bounded(self) -> bool | str:
        return UNBOUNDED

    @property
    def constants(self) -> bool | str:
        return "the scale has 3 bits of mantissa"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        largest = torch.linalg.vector_norm(groups, float("inf"), dim=-1)
        scale = torch.where(largest == 0, 1.0, largest * (1.0 / LARGEST)).clamp(SCALE_TINY, SCALE_MAX)
        return QParams(scale.to(torch.float8_e4m3fn), levels=LEVELS)


def nvfp4() -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(NVFP4Quantizer(4, 16)), TensorScheme(NVFP4Quantizer(4, 16))


FAMILY = Family(
    nvfp4,
    "4-bit floats (e2m1) of one token, groups of 16 channels, scale in e4m3",
    "NVIDIA 2025, Introducing NVFP4; without the second scale of the whole tensor, which an appended cache has not",
    formula="x̂ = level·s, levels ±{0, .5, 1, 1.5, 2, 3, 4, 6}, s = e4m3(amax/6), at least 2⁻⁹. Bits: 4 + 8/16.",
    good="hardware that multiplies it; small groups hold an outlier channel to 15 neighbours.",
    fails="groups with amax under 0.01, as small values have them: the scale has no finer step (no second scale here). "
    "Asymmetric integers with groups of 64 have the same 4.5 bits and a lower error (.090 against .095).",
)
