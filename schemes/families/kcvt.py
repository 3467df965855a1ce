"""KCVT: keys per channel and values per token, a group as long as it can be: GEAR's coarser backbone."""

from typing import Literal

from kvdelta.schemes.affine import MinMaxQuantizer
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family

Bits = Literal[1, 2, 3, 4, 8]


def kcvt(*, key_bits: Bits = 4, value_bits: Bits = 4, block: int = 64) -> tuple[TensorScheme, TensorScheme]:
    """Keys: one group a channel and block of `block` tokens. Values: one group a token and head, quantized with the keys."""
    return (
        TensorScheme(MinMaxQuantizer(key_bits, block, "channel")),
        TensorScheme(MinMaxQuantizer(value_bits, "all", "token"), flush_every=block),
    )


FAMILY = Family(
    kcvt,
    "asymmetric, keys per channel over a block of tokens, values per token over the whole width of a head",
    "Kang et al. 2024 (GEAR), arXiv 2403.05527",
    formula="asymmetric, float zero: K one group a channel and block, V one group a token and head. Bits: K b + 32/block, "
    "V b + 32/D.",
    good="4 bits with little metadata, on keys with loud constant channels too; k4v3 came out of a race of all families within 4.5 "
    "bits over two models (results/recommend-h200). The inner scheme of gear: gear(kcvt4).",
    fails="2 bits: a group of a whole width has a wide range.",
    short={f"kcvt{bits}": {"bits": bits} for bits in (2, 4)}
    | {"k4v3": {"key_bits": 4, "value_bits": 3, "sink_tokens": 4}},
    compared="with the published code of GEAR (opengear-project/GEAR, efe0bfe), keys alone: codes are equal but for ties. Values: a "
    "group is a token of one head, there of all heads",
)
