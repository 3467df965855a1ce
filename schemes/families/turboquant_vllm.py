"""TurboQuant as vLLM serves it: rotated keys with corrected norms, plain uniform values."""

from typing import Literal

from kvdelta.schemes.affine import MinMaxQuantizer
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.float8 import Fp8Quantizer
from kvdelta.schemes.lloyd_max import LloydMaxQuantizer, NormCorrectedQuantizer
from kvdelta.schemes.rotation import RotatedQuantizer


def turboquant_vllm(
    *, key_bits: Literal[3, 4, 8] = 4, value_bits: Literal[3, 4] = 4, correct_norm: bool = True
) -> tuple[TensorScheme, TensorScheme]:
    """key_bits=8: e4m3 without a scale, not rotated."""
    nearest_levels = LloydMaxQuantizer(3 if key_bits == 8 else key_bits, "all", "token")
    levels = NormCorrectedQuantizer(nearest_levels) if correct_norm else nearest_levels
    key = Fp8Quantizer("e4m3", "none") if key_bits == 8 else RotatedQuantizer(levels)
    return TensorScheme(key), TensorScheme(MinMaxQuantizer(value_bits, "all", "token"))


FAMILY = Family(
    turboquant_vllm,
    "keys: Hadamard, then the nearest Lloyd–Max level, norm corrected, or e4m3; values: asymmetric, unrotated",
    "vLLM 2026, --kv-cache-dtype turboquant_4bit_nc, turboquant_3bit_nc, turboquant_k3v4_nc, turboquant_k8v4",
    formula="K: u = H·x·√D/‖x‖, code = nearest level, x̂ = Hᵀ·û·‖x‖/‖û‖ (key_bits=8: e4m3(x)); V: min–max over the head of a "
    "token. Bits: K b + 16/D, or 8; V b + 32/D. vLLM's presets also keep the first and last two layers exact: "
    "vllm/turboquant_4bit_nc (kvdelta schemes --engine vllm).",
    good="what vLLM serves under these names; values lose nothing by a rotation that they do not need.",
    fails="keys with channel offsets, as turboquant; values at 3 bits over a whole head.",
    called="turboquant-vllm",
    compared="with vLLM's store kernels, and its levels, transcribed and run in float32 on real keys and values: codes but for "
    "those near a boundary. Departs: levels are the exact ones (vLLM integrates numerically and is up to 0.1 % off), and "
    "values are coded with the rounded scale and minimum.",
)
