"""Symmetric uniform quantization; `int4` (per token, groups of 64) is "naive INT4"."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, QParams, stored_scale
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import Axis, GroupSize

Bits = Literal[2, 3, 4, 8]


@dataclass(frozen=True)
class SymmetricQuantizer(AffineQuantizer):
    """Narrow range: scale = absmax/(2^(b−1) − 1), codes within ±(2^(b−1) − 1), 0 exact. No zero is stored.

    Stored codes are shifted by 2^(b−1) − 1, so they are unsigned and one of the 2^b is never used.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits == 1:
            raise UserError("symmetric codes of 1 bit could only say 0; use 2 bits or more, or asymmetric:bits=1")

    @property
    def max_code(self) -> int:
        return 2 * self._largest

    @property
    def kernel(self) -> tuple[str, tuple]:
        return "symmetric", ()

    @property
    def _largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        largest = torch.linalg.vector_norm(groups, float("inf"), dim=-1)
        scale = torch.where(largest == 0, 1.0, largest * (2 * self.step_of_range))
        return QParams(stored_scale(scale), zero=self._largest)


def symmetric(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    key_axis: Axis = "token",
    value_axis: Axis = "token",
    group_size: GroupSize = 64,
) -> tuple[TensorScheme, TensorScheme]:
    return (
        TensorScheme(SymmetricQuantizer(key_bits, group_size, key_axis)),
        TensorScheme(SymmetricQuantizer(value_bits, group_size, value_axis)),
    )


FAMILY = Family(
    symmetric,
    "symmetric uniform, scale = absmax/(2^(b−1)−1), no zero; bits=4 is naive INT4",
    "Jacob et al. 2018, arXiv 1712.05877",
    formula="s = absmax/(2^(b−1) − 1), code = clamp(round(x/s), ±(2^(b−1) − 1)), x̂ = code·s. Bits: b + 16/G.",
    good="8 bits; values; hardware that multiplies integers.",
    fails='keys with an offset, and 2 bits, where one of four codes is unused and another is 0: bits=4 is "naive INT4".',
    short={f"int{bits}": {"bits": bits} for bits in (2, 3, 4, 8)},
    compared="with QuaRot's quantizer (4 bits, a head, behind its rotation), run on real keys and values: codes but for ties; and with vLLM's "
    "int8_per_token_head (8 bits, group_size=all), transcribed. Departs: vLLM cuts codes to whole numbers, which are rounded here; both have "
    "float32 scales.",
)
