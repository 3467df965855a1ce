"""Codes of 1 to 8 bits in bytes, with nothing wasted.

As many codes as fill whole bytes (8 of 1, 3, 5 or 7 bits, 4 of 2 or 6, 2 of 4, 1 of 8) form a little-endian word.
"""

from functools import reduce
from math import lcm

import torch
from jaxtyping import UInt8
from torch import Tensor

from kvdelta.schemes.errors import UserError

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def codes_per_word(bits: int) -> int:
    """The least number of codes that fill whole bytes."""
    if bits not in WIDTHS:
        raise UserError(f"bits={bits}: packed codes have {', '.join(map(str, WIDTHS))} bits")
    return lcm(8, bits) // bits


def check_packable(bits: int, group: int) -> None:
    """Raise UserError where a group of codes would end inside a byte."""
    unit = codes_per_word(bits)
    if group % unit:
        raise UserError(
            f"a group of {group} codes of {bits} bits is {group * bits} bits, not whole bytes; "
            f"use a group that {unit} divides"
        )


def pack(codes: UInt8[Tensor, "*lead codes"], bits: int) -> UInt8[Tensor, "*lead bytes"]:
    """Pack the last axis: n codes become n · bits / 8 bytes. Raises UserError where they do not fill bytes."""
    check_packable(bits, codes.shape[-1])
    if bits == 8:
        return codes.contiguous()
    unit = codes_per_word(bits)
    words = codes.unflatten(-1, (-1, unit))
    if bits * unit == 8:  # one byte a word: no wider type needed
        return reduce(torch.bitwise_or, (words[..., i] << (bits * i) for i in range(unit)))
    wide = words.to(_wide(bits))
    word = reduce(torch.bitwise_or, (wide[..., i] << (bits * i) for i in range(unit)))
    return torch.stack([(word >> (8 * j)) & 255 for j in range(bits * unit // 8)], dim=-1).to(torch.uint8).flatten(-2)


def unpack(packed: UInt8[Tensor, "*lead bytes"], bits: int) -> UInt8[Tensor, "*lead codes"]:
    """The inverse of `pack`."""
    unit = codes_per_word(bits)
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    if bits * unit == 8:
        return torch.stack([(packed >> (bits * i)) & mask for i in range(unit)], dim=-1).flatten(-2)
    size = bits * unit // 8
    byte = packed.unflatten(-1, (-1, size)).to(_wide(bits))
    word = reduce(torch.bitwise_or, (byte[..., j] << (8 * j) for j in range(size)))
    return torch.stack([(word >> (bits * i)) & mask for i in range(unit)], dim=-1).to(torch.uint8).flatten(-2)


def _wide(bits: int) -> torch.dtype:
    """That holds a word: 24 bits of codes of 3 or 6 bits, 40 of 5, 56 of 7."""
    return torch.int64 if bits in (5, 7) else torch.int32
