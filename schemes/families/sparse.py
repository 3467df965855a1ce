"""Keep the largest numbers exactly, as value and place; the inner scheme has the rest."""

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.sparse_blocks import SparseQuantizer
from kvdelta.schemes.wrapping import Sides, wrap


def sparse(
    key: TensorScheme,
    value: TensorScheme,
    *,
    sides: Sides = "both",
    fraction: float = 0.01,
    block: int = 0,
) -> tuple[TensorScheme, TensorScheme]:
    """block: tokens among which the largest are looked for; 0: those of the inner scheme's group."""
    return wrap(key, value, sides, lambda inner: SparseQuantizer(inner, block, fraction))


FAMILY = Family(
    sparse,
    "wrapper: the largest numbers exact, as float16 value and index; the inner scheme on the rest",
    "dense and sparse as in Hooper et al. 2024 (KVQuant), arXiv 2401.18079; here without calibration",
    formula="in each head and block of tokens the ⌈fraction·n⌋ largest |x| (at least 1) are stored as value + index and "
    "replaced by their line's median; the rest as the inner scheme. Bits: 24 or 32 an outlier.",
    good="a few numbers that stretch a group's range, at 2 and 3 bits.",
    fails="one channel that is large in every token takes all places; per token at least one of the width is kept, which "
    "is 0.38 bits at 64 channels: a smaller group buys as much.",
    compared="with no published reference: KVQuant takes both ends of a vector by quantiles (kvquant); tested against its formula, the "
    "inner scheme on the rest, and the largest numbers as they came.",
)
