"""NVFP4: 4-bit floats (e2m1) in groups of 16 with an 8-bit float as scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, QParams
from kvdelta.schemes.base import KV, TensorScheme
from kvdelta.schemes.e2m1 import LARGEST, LEVELS, MAX_CODE, UNBOUNDED
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper, unblocked

SCALE_TINY, SCALE_MAX = 2.0**-9, 448.0  # of e4m3


@dataclass(frozen=True)
class NVFP4Quantizer(AffineQuantizer):
    """scale = amax/6, rounded to e4m3 and at least its smallest number."""

    @property
    def max_code(self) -> int:
        return MAX_CODE

    @property
    def bounded(self) -> bool | str:
        return UNBOUNDED

    @property
    def constants(self) -> bool | str:
        return "the scale has 3 bits of mantissa"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        largest = torch.linalg.vector_norm(groups, float("inf"), dim=-1)
        scale = torch.where(largest == 0, 1.0, largest * (1.0 / LARGEST)).clamp(SCALE_TINY, SCALE_MAX)
        return QParams(scale.to(torch.float8_e4m3fn), levels=LEVELS)


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoScalesTensor(WrappedTensor):
    second: Float[Tensor, "batch heads blocks"]

    def restore(self, x: Decoded) -> Decoded:
        return x * self.second.repeat_interleave(self.tokens_per_group, dim=2)[..., None]


@dataclass(frozen=True)
class TwoScalesQuantizer(Wrapper):
    """The inner quantizer on x / second, second = amax/(6·448) of a head and block in float32: the largest group then has
    the largest scale, and small ones keep three bits of mantissa."""

    def quantize(self, x: KV) -> TwoScalesTensor:
        blocks = self.blocks(x)
        largest = blocks.abs().amax((-2, -1))
        second = torch.where(largest == 0, 1.0, largest * (1.0 / (LARGEST * SCALE_MAX)))
        return TwoScalesTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=self.inner.quantize(unblocked(blocks / second[..., None, None])),
            second=second,
        )


def nvfp4(*, scales: Literal[1, 2] = 1, block: int = 0) -> tuple[TensorScheme, TensorScheme]:
    """scales=2: a second one, float32, over `block` tokens of a head; 0: 128."""
    if scales == 1 and block:
        raise UserError(f"block={block}: the tokens that share the second scale; add scales=2 or leave it out")
    if block < 0:
        raise UserError(f"block={block}: a block has at least 1 token")
    quantizer = NVFP4Quantizer(4, 16) if scales == 1 else TwoScalesQuantizer(NVFP4Quantizer(4, 16), block or 128)
    return TensorScheme(quantizer), TensorScheme(quantizer)


FAMILY = Family(
    nvfp4,
    "4-bit floats (e2m1) of one token, groups of 16 channels, scale in e4m3",
    "NVIDIA 2025, Introducing NVFP4",
    formula="x̂ = level·s, levels ±{0, .5, 1, 1.5, 2, 3, 4, 6}, s = e4m3(amax/6), at least 2⁻⁹; scales=2: x̂ = level·s·t, t = "
    "amax/(6·448) of a head and block, s = e4m3(amax of the group/(6·t)). Bits: 4 + 8/16, and 32 a head and block.",
    good="hardware that multiplies it; small groups hold an outlier channel to 15 neighbours. scales=2 for any range of numbers.",
    fails="groups with amax under 0.01, as small values have them: with one scale there is no finer step. "
    "Asymmetric integers with groups of 64 have the same 4.5 bits and a lower error (.090 against .095).",
    compared="with torchao 0.18's nvfp4_quantize, run on real keys and values with and without its per-tensor scale: equal scales, and "
    "codes but for ties. Departs: scales down to 2⁻⁹, where torchao ends at 2⁻⁶; by default there is no second scale; scales=2 takes it from each head and block, since a "
    "cache that grows has no whole tensor, where engines calibrate one a layer.",
)
