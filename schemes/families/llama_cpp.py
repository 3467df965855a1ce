"""llama.cpp's quantized KV cache: channels rotated by a Hadamard matrix, then a ggml format."""

from typing import Literal

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.ggml_blocks import GGMLQuantizer
from kvdelta.schemes.rotated_runs import RotatedRunsQuantizer

Type = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


def llama_cpp(*, key_type: Type = "q8_0", value_type: Type = "q8_0") -> tuple[TensorScheme, TensorScheme]:
    """The types of --cache-type-k and --cache-type-v."""
    key, value = (GGMLQuantizer(type, "first") for type in (key_type, value_type))
    return TensorScheme(RotatedRunsQuantizer(key, run="largest")), TensorScheme(RotatedRunsQuantizer(value))


FAMILY = Family(
    llama_cpp,
    "keys and values rotated by a Hadamard matrix, then a ggml format",
    "llama.cpp since April 2026, its pull request 21038",
    formula="y = x·H in runs of channels: keys the largest power of two that divides the width, values 64; none where 64 "
    "does not divide it. Then blocks of 32 as in the format's own family (iq4_nl: the codes that its scale is fitted to). "
    "Bits: those of the format, 4.5 for q4_0 and iq4_nl.",
    good="what llama.cpp does with -ctk q4_0 -ctv q4_0; a loud channel no longer sets the scale of its block alone.",
    fails="widths that 64 does not divide, such as 80 or 96: they stay unrotated. LLAMA_ATTN_ROT_DISABLE=1 is the bare format.",
    compared="with ggml's block functions for CUDA behind its Hadamard matrix, compiled as C and run on real keys and "
    "values: equal bytes. Departs: llama.cpp multiplies by a matrix, in another order of sums, and a "
    "GPU may fuse multiply and add; GGUF files of Llama models have the two channels that RoPE turns side by side, so that blocks "
    "of keys hold others there (not those of Qwen2); and it reads the newest token's own key and value quantized too.",
    called="llama.cpp",
)
