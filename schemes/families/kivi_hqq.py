"""KIVI's layout with HQQ's zero: keys per channel, values per token, an exact window."""

from typing import Literal

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.half_quadratic import GroupSolver, HalfQuadraticQuantizer
from kvdelta.schemes.residual_window import windowed

Bits = Literal[1, 2, 3, 4, 8]


def kivi_hqq(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    group_size: int = 32,
    residual_length: int = 128,
    normalize: bool = False,
) -> tuple[TensorScheme, TensorScheme]:
    """Residual rule as in `kivi`; zero as in `hqq`."""

    def quantizer(bits: int, axis: Literal["token", "channel"]) -> HalfQuadraticQuantizer:
        return HalfQuadraticQuantizer(bits, group_size, axis, GroupSolver(normalize=normalize))

    return windowed(quantizer(key_bits, "channel"), quantizer(value_bits, "token"), residual_length)


FAMILY = Family(
    kivi_hqq,
    "KIVI's layout with the optimised zero of HQQ",
    "Liu et al. 2024, arXiv 2402.02750; Badri and Shaji 2023",
    formula="as kivi, but x̂ = (code − z)·s with z from the half-quadratic solver. Bits as kivi.",
    good="2 bits: both ideas add up, as the offset and the axis are different things.",
    fails="keys with large offsets, where beta is too large to move the zero (normalize=true); 4 bits.",
    short={f"kivi-hqq{bits}": {"bits": bits} for bits in (2, 4)},
    own_residual=True,
    called="kivi-hqq",
    compared="with no other code: KIVI's layout and HQQ's zero are compared there (kivi, hqq).",
)
