"""The block formats of ggml (llama.cpp) that its KV cache offers, as they are; q6_0 is ik_llama.cpp's."""

from functools import partial

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.ggml_blocks import Format, GGMLQuantizer, Rule


def _both(format: Format) -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(GGMLQuantizer(format)), TensorScheme(GGMLQuantizer(format))


def _iq4_nl(*, codes: Rule = "nearest") -> tuple[TensorScheme, TensorScheme]:
    """codes: the nearest levels for the stored scale, or those that the scale was fitted to, as ggml keeps them."""
    return TensorScheme(GGMLQuantizer("iq4_nl", codes)), TensorScheme(GGMLQuantizer("iq4_nl", codes))


_SOURCE = (
    "ggml (llama.cpp), ggml-quants.c; llama.cpp rotates its cache types of the same names first since April 2026: that is "
    "llama.cpp:type=q4_0"
)
_COMPARED = "with the gguf package, on real keys and values too: equal bytes."
_SYMMETRIC = (
    "d = (signed number of largest magnitude)/−2^(b−1), code = trunc(x/d + 2^(b−1) + ½), x̂ = (code − 2^(b−1))·d"
)
_OFFSET = "d = (max − min)/(2^b − 1), m = min, code = trunc((x − m)/d + ½), x̂ = code·d + m"
_KEYS = "keys with loud channels: a block is 32 neighbouring channels of one token, loud ones among them."


def _family(
    format: Format,
    summary: str,
    formula: str,
    good: str,
    fails: str = _KEYS,
    source: str = _SOURCE,
    compared: str = _COMPARED,
) -> Family:
    build = _iq4_nl if format == "iq4_nl" else partial(_both, format)
    return Family(build, summary, source, formula, good, fails, compared=compared, called=format)


FAMILIES = (
    _family(
        "q8_0", "ggml format, unrotated: 8 bits, symmetric, blocks of 32 channels",
        formula="d = absmax/127, code = round(x/d), x̂ = code·d. Bits: 8 + 16/32.",
        good="everywhere: 16 windows do not tell its loss from 0.", fails="it is twice as large as what 4 bits need.",
    ),
    _family(
        "q4_0", "ggml format, unrotated: 4 bits without offset, blocks of 32 channels",
        formula=f"{_SYMMETRIC}. Bits: 4 + 16/32.", good="values; all 16 codes are used, unlike narrow symmetric.",
    ),
    _family(
        "q4_1", "ggml format, unrotated: 4 bits with offset, blocks of 32 channels",
        formula=f"{_OFFSET}. Bits: 4 + 32/32.", good="what asymmetric:group_size=32 does, in ggml's layout.",
    ),
    _family(
        "q5_0", "ggml format, unrotated: 5 bits without offset, blocks of 32 channels",
        formula=f"{_SYMMETRIC}. Bits: 5 + 16/32.", good="between 4 and 8 bits, where 4 cost too much.",
    ),
    _family(
        "q5_1", "ggml format, unrotated: 5 bits with offset, blocks of 32 channels",
        formula=f"{_OFFSET}. Bits: 5 + 32/32.", good="keys with an offset, at 6 bits.",
    ),
    _family(
        "q6_0", "ik_llama.cpp's format, unrotated: 6 bits without offset, blocks of 32 channels",
        formula=f"{_SYMMETRIC}. Bits: 6 + 16/32.", good="between 5 and 8 bits, where 5 cost too much.",
        source="ik_llama.cpp, whose cache type it is (llama.cpp has none); -khad and -vhad rotate there: hadamard(q6_0)",
        compared="with its CUDA cache kernel's block function, compiled and run on real keys and values: equal bytes. Departs from "
        "its CPU code, which fits d again by least squares.",
    ),
    _family(
        "iq4_nl", "ggml format, unrotated: 4 bits, 16 uneven levels, blocks of 32 channels",
        formula="x̂ = level·d, the nearest of 16 levels from −127 to 113; d by least squares, weighted by x²; codes=first keeps the levels "
        "that d was fitted to. Bits: 4 + 16/32.",
        good="bell-shaped blocks: values, rotated keys.",
        compared="with ggml's block function, compiled and run on real keys and values: with codes=first equal codes, and a scale "
        "within one step of float16, since sums are taken in another order. Departs by default: the nearest level for the "
        "stored scale, where ggml keeps its first codes.",
    ),
)  # fmt: skip
