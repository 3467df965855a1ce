"""KIVI: keys per channel, values per token, and a window of exact recent tokens."""

from typing import Literal

from kvdelta.schemes.affine import MinMaxQuantizer
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.residual_window import windowed

Bits = Literal[1, 2, 3, 4, 8]


def kivi(
    *, key_bits: Bits = 4, value_bits: Bits = 4, group_size: int = 32, residual_length: int = 128
) -> tuple[TensorScheme, TensorScheme]:
    """Keys: when `residual_length` tokens are exact, all of them are quantized, per channel over `group_size` tokens.
    Values: beyond `residual_length` exact tokens the oldest is quantized, per token over `group_size` channels.

    The published code keeps scale and offset in the model's float16, as here, and divides 0 by 0 in a constant
    group, where this gives the constant.
    """
    return windowed(
        MinMaxQuantizer(key_bits, group_size, "channel"),
        MinMaxQuantizer(value_bits, group_size, "token"),
        residual_length,
    )


FAMILY = Family(
    kivi,
    "keys per channel, values per token, asymmetric, the newest residual_length tokens exact",
    "Liu et al. 2024, arXiv 2402.02750",
    formula="asymmetric, float zero: K per channel over G tokens, V per token over G channels; K is quantized when R tokens wait, V when it is R tokens old. Bits: b + 32/G, and R exact tokens.",
    good="long contexts at 2 to 4 bits: the loud channels of keys are the same in every token.",
    fails="short contexts, where the exact window is most of the bytes; loud tokens (sinks) among keys.",
    short={f"kivi{bits}": {"bits": bits} for bits in (2, 4)},
    own_residual=True,
    compared="with the published code (jy-yuan/KIVI, 876b4d2): offsets are equal, scales and codes but for the rounding of its float16 "
    "arithmetic. In a constant group, where it divides 0 by 0, this gives the constant",
)
