"""TurboQuant, its form for the mean squared error: random rotation, then the best levels for a normal distribution."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from schemes.affine import AffineQuantizer, AffineTensor, QParams, level_table, stored_scale
from schemes.base import KV, TensorScheme
from schemes.family import Family
from schemes.packing import unpack
from schemes.rotation import RotatedQuantizer
from schemes.wrapping import Wrapper

Bits = Literal[1, 2, 3, 4]

HALVES = {  # Lloyd–Max levels of N(0, 1), the positive half
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326),
}


@dataclass(frozen=True)
class LloydMaxQuantizer(AffineQuantizer):
    """One token of a head is a group: scale = ‖x‖/√D, codes are the nearest levels."""

    @property
    def bounded(self) -> bool | str:
        return "levels are not evenly spaced, and the largest numbers lie beyond the last one"

    @property
    def constants(self) -> bool | str:
        return "the levels are those of a normal distribution"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        norm = torch.linalg.vector_norm(groups, dim=-1)
        half = HALVES[self.bits]
        levels = (*(-level for level in reversed(half)), *half)
        scale = torch.where(norm == 0, 1.0, norm / groups.shape[-1] ** 0.5)
        return QParams(stored_scale(scale) * (norm > 0), levels=levels)


@dataclass(frozen=True)
class NormCorrectedQuantizer(Wrapper):
    """The codes of the inner quantizer with ‖x‖/‖levels of its codes‖ as the stored scale, so that x̂ has the norm of x."""

    inner: LloydMaxQuantizer

    def quantize(self, x: KV) -> AffineTensor:
        held = self.inner.quantize(x)
        assert held.levels is not None
        unit = level_table(held.levels, x.device)[unpack(held.codes, held.bits).int()]
        norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        scale = norm / torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
        return replace(held, scale=stored_scale(scale) * (norm > 0))


def turboquant(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    rotation: Literal["orthogonal", "hadamard"] = "orthogonal",
    correct_norm: bool = False,
    seed: int = 0,
) -> tuple[TensorScheme, TensorScheme]:
    """rotation: a random orthogonal matrix, or Hadamard with random signs; drawn with `seed`."""
    kind = "orthogonal" if rotation == "orthogonal" else "signed-hadamard"

    def side(bits: int) -> TensorScheme:
        nearest_levels = LloydMaxQuantizer(bits, "all", "token")
        quantizer = NormCorrectedQuantizer(nearest_levels) if correct_norm else nearest_levels
        return TensorScheme(RotatedQuantizer(quantizer, kind=kind, seed=seed))

    return side(key_bits), side(value_bits)


FAMILY = Family(
    turboquant,
    "random rotation, then the nearest Lloyd–Max level of a normal distribution; one norm a token and head",
    "Zandieh et al. 2025 (TurboQuant), arXiv 2504.19874, the form for mean squared error",
    formula="u = R·x·√D/‖x‖, code = nearest Lloyd–Max level, x̂ = Rᵀ·û·‖x‖/√D; the norm is float16. Bits: b + 16/D.",
    good="few bits of metadata: at 2 bits and 64 channels 2.25 in all; no calibration, no groups; wide heads.",
    fails="keys with channel offsets: all of a token's energy sets one scale. Per-channel groups do better there at the "
    "same number of bits.",
    short={f"turbo{bits}": {"bits": bits} for bits in (1, 2, 3, 4)},
)
