"""Asymmetric uniform quantization with a float or an integer zero."""

from typing import Literal

from kvdelta.schemes.affine import MinMaxQuantizer
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import Axis, GroupSize
from kvdelta.schemes.integer_zero import IntegerZeroQuantizer

Bits = Literal[1, 2, 3, 4, 8]


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
    compared="float zero with KIVI's published code and QuaRot's 4-bit cache, integer zero with QuaRot's quantizer and OScaR's: equal but for "
    "ties (kivi, hadamard, oscar)",
)
