"""8-bit floats, e4m3 and e5m2, with a scale a tensor, head or token, or none."""

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.float8 import Format, Fp8Quantizer, Scale


def fp8(*, format: Format = "e4m3", scale: Scale = "tensor", block: int = 0) -> tuple[TensorScheme, TensorScheme]:
    """block: tokens that share a scale where it is of a tensor or head; 0: 128."""
    if block and scale in ("none", "token"):
        raise UserError(
            f"block={block}: scale={scale} takes tokens one by one; a block belongs to scale=head or tensor"
        )
    if block < 0:
        raise UserError(f"block={block}: a block has at least 1 token")
    tokens = 1 if scale in ("none", "token") else block or 128
    quantizer = Fp8Quantizer(format, scale, tokens)
    return TensorScheme(quantizer), TensorScheme(quantizer)


FAMILY = Family(
    fp8,
    "8-bit floats: e4m3 or e5m2, scaled by absmax of a token, head or tensor, or not at all",
    "Micikevicius et al. 2022, arXiv 2209.05433; scale=none is what servers do without calibrated scales",
    formula="code = fp8(x/s), saturating at 448 (e4m3) or 57344 (e5m2), s = absmax/448 or /57344 as float16; x̂ = code·s. "
    "Bits: 8 + 16/D per token, 8 with none. Numbers that saturate are counted in the record.",
    good="hardware that has it; heavy tails, since the relative error is the same at every size (.026 e4m3, .053 e5m2).",
    fails="int8 is 4.5 times closer on normal data at 8.25 bits; e5m2 doubles the error of "
    "e4m3 for a range that a scale gives for free.",
    short={"fp8-e5m2": {"format": "e5m2"}},
    compared="with vLLM's fp8_per_token_head (scale=token), transcribed and run on real keys and values: codes but for those near a "
    "boundary. Departs: float16 scales, there float32; a scale of a tensor is one of `block` tokens, where engines have one "
    "calibrated scale a layer.",
)
