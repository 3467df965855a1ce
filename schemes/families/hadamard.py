"""Rotate the channels by a Hadamard matrix before the inner scheme: outliers are spread over all channels."""

from typing import Literal

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.rotation import RotatedQuantizer
from kvdelta.schemes.wrapping import Sides, wrap


def hadamard(
    key: TensorScheme,
    value: TensorScheme,
    *,
    sides: Sides = "both",
    signs: Literal["none", "random"] = "none",
    seed: int = 0,
) -> tuple[TensorScheme, TensorScheme]:
    """signs: random signs, drawn with `seed`, before the matrix."""
    kind = "hadamard" if signs == "none" else "signed-hadamard"
    if signs == "none" and seed:
        raise UserError(f"seed={seed} draws random signs; add signs=random or leave it out")
    return wrap(key, value, sides, lambda inner: RotatedQuantizer(inner, kind=kind, seed=seed))


FAMILY = Family(
    hadamard,
    "wrapper: the inner scheme on channels rotated by a Hadamard matrix",
    "Ashkboos et al. 2024 (QuaRot), arXiv 2404.00456",
    formula="y = x·H, H normalised Sylvester (block-diagonal where the width is no power of two); x̂ = ŷ·Hᵀ. On read, so "
    "the model is not touched. signs=random puts random signs before H.",
    good="few loud channels and per-token groups: their energy is spread over the whole width, so the range falls.",
    fails="around per-channel groups, which hold a loud channel apart already: the rotation mixes it into all others. Of "
    "smooth data it changes nothing.",
    compared="with QuaRot's code (spcl/QuaRot, 5008669), run on real keys and values: what is rotated to the order of sums, and codes but "
    "for ties of the quantizers behind it, symmetric, asymmetric with an integer zero, clipped, and the float zero of its 4-bit cache. "
    "Also with vLLM's rotation (int4_per_token_head, turboquant-vllm) and llama.cpp's, in front of their grids. Departs: values are rotated by "
    "the weights there, by the scheme here; a group of keys is a token of one head (its k_groupsize of a head's width), by default there "
    "of all heads; widths that are no power of two are refused there.",
)
