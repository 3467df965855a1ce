"""TurboQuant, its form for the mean squared error: random rotation, then the best levels for a normal distribution."""

from typing import Literal

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.lloyd_max import LloydMaxQuantizer, NormCorrectedQuantizer
from kvdelta.schemes.rotation import RotatedQuantizer
from kvdelta.schemes.two_widths import TwoWidthsQuantizer

Bits = Literal[1, 2, "2.5", 3, "3.5", 4]


def turboquant(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    rotation: Literal["orthogonal", "hadamard"] = "orthogonal",
    correct_norm: bool = False,
    seed: int = 0,
    block: int = 0,
) -> tuple[TensorScheme, TensorScheme]:
    """rotation: a random orthogonal matrix, or Hadamard with random signs; drawn with `seed`. bits=2.5 and 3.5: a quarter of
    the channels at one bit more than the others, chosen in blocks of `block` tokens (0: 128)."""
    if block and isinstance(key_bits, int) and isinstance(value_bits, int):
        raise UserError(
            f"block={block}: the tokens among which loud channels are found; it belongs to bits=2.5 and 3.5"
        )
    if block < 0:
        raise UserError(f"block={block}: a block has at least 1 token")
    kind = "orthogonal" if rotation == "orthogonal" else "signed-hadamard"

    def instance(bits: int) -> RotatedQuantizer:
        nearest_levels = LloydMaxQuantizer(bits, "all", "token")
        quantizer = NormCorrectedQuantizer(nearest_levels) if correct_norm else nearest_levels
        return RotatedQuantizer(quantizer, kind=kind, seed=seed)

    def side(bits: Bits) -> TensorScheme:
        if isinstance(bits, int):
            return TensorScheme(instance(bits))
        fewer = int(bits[0])
        return TensorScheme(TwoWidthsQuantizer(instance(fewer + 1), instance(fewer), 0.25, block or 128))

    return side(key_bits), side(value_bits)


FAMILY = Family(
    turboquant,
    "random rotation, then the nearest Lloyd–Max level of a normal distribution; one norm a token and head",
    "Zandieh et al. 2025 (TurboQuant), arXiv 2504.19874: Algorithm 1, the form for mean squared error",
    formula="u = R·x·√D/‖x‖, code = nearest Lloyd–Max level, x̂ = Rᵀ·û·‖x‖/√D; the norm is float16. Bits: b + 16/D. bits=2.5 "
    "and 3.5 (section 4.3): the quarter of the channels with the largest mean |x| of a block at 3 (4) bits, the others at 2 "
    "(3), each with a rotation and norm of its own: 2.25 (3.25) + 32/D.",
    good="few bits of metadata: at 2 bits and 64 channels 2.25 in all; no calibration, no groups; wide heads.",
    fails="keys with channel offsets: all of a token's energy sets one scale. Per-channel groups do better there at the "
    "same number of bits. correct_norm=true lowers KL by 5 to 8 % at 3 and 4 bits on SmolLM2, and not at 2, nor on Qwen2.5.",
    short={f"turbo{bits}": {"bits": bits} for bits in (1, 2, "2.5", 3, "3.5", 4)},
    compared="with no published code, of which there is none, but a float64 transcription of the paper, with our rotation, on real keys and values: "
    "equal but for codes near a boundary. Departs: no Algorithm 2 (QJL of the residual); the paper does not say "
    "how outlier channels are found, nor counts norms; here they are found in each block, which then waits for its tokens.",
)
