"""ExLlamaV3's cache: runs of 32 channels rotated, scaled by their absmax, and the middle of one of 2^b equal cells."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, QParams, stored_scale
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.rotated_runs import RotatedRunsQuantizer

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
SIZE = 32  # channels of a group, and of a rotation


@dataclass(frozen=True)
class MidpointQuantizer(AffineQuantizer):
    """Levels (2·code + 1)/2^b − 1 of absmax: no code stands for 0, and none for absmax itself."""

    @property
    def constants(self) -> bool | str:
        return "absmax lies between the last level and the end of its cell"

    def check(self, channels: int) -> None:
        if channels % SIZE:
            raise UserError(
                f"{channels} channels do not divide into groups of {SIZE}, which no head shares with another"
            )

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        largest = torch.linalg.vector_norm(groups, float("inf"), dim=-1)
        count = 2**self.bits
        levels = tuple((2 * code + 1) / count - 1 for code in range(count))
        return QParams(stored_scale(largest) * (largest > 0), levels=levels)


def exllamav3(*, key_bits: Bits = 4, value_bits: Bits = 4) -> tuple[TensorScheme, TensorScheme]:
    key, value = (RotatedRunsQuantizer(MidpointQuantizer(bits, SIZE), least=SIZE) for bits in (key_bits, value_bits))
    return TensorScheme(key), TensorScheme(value)


FAMILY = Family(
    exllamav3,
    "groups of 32 channels: Hadamard, absmax, 2^b equal cells",
    "ExLlamaV3, its quantized cache (CacheLayer_quant), after Ashkboos et al. 2024 (QuaRot), arXiv 2404.00456",
    formula="y = x·H₃₂ in each run of 32 channels, s = absmax, code = ⌊(y/s + 1)·2^(b−1)⌋, ŷ = ((2·code + 1)/2^b − 1)·s. Bits: "
    "b + 16/32.",
    good="values and keys alike at 4 bits and 4.5 in all: the rotation evens out a group, and all 2^b codes are used.",
    fails="keys whose loud channels are alone in their 32: they are spread over 32 neighbours, not over the head.",
    compared="with its CUDA kernels, transcribed and run in float32 on real keys and values: codes but for those near a boundary. "
    "Departs: codes are taken with the rounded scale; the compander (off unless asked for) is missing.",
)
