"""Lloyd–Max levels of a normal distribution, scaled by the norm of a token: what TurboQuant stores after its rotation."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, AffineTensor, QParams, level_table, stored_scale
from kvdelta.schemes.base import KV
from kvdelta.schemes.packing import unpack
from kvdelta.schemes.wrapping import Wrapper

HALVES = {  # Lloyd–Max levels of N(0, 1), the positive half
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326),
}


@dataclass(frozen=True)
class LloydMaxQuantizer(AffineQuantizer):
    """One token of a head is a group: scale = ‖x‖/√D, codes are the nearest levels."""

    @property
    def bounded(self) -> bool | str:
        return "levels are not evenly spaced, and the largest numbers lie beyond the last one"

    @property
    def constants(self) -> bool | str:
        return "the levels are those of a normal distribution"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        norm = torch.linalg.vector_norm(groups, dim=-1)
        half = HALVES[self.bits]
        levels = (*(-level for level in reversed(half)), *half)
        scale = torch.where(norm == 0, 1.0, norm / groups.shape[-1] ** 0.5)
        return QParams(stored_scale(scale) * (norm > 0), levels=levels)


@dataclass(frozen=True)
class NormCorrectedQuantizer(Wrapper):
    """The codes of the inner quantizer with ‖x‖/‖levels of its codes‖ as the stored scale, so that x̂ has the norm of x."""

    inner: LloydMaxQuantizer

    def quantize(self, x: KV) -> AffineTensor:
        held = self.inner.quantize(x)
        assert held.levels is not None
        unit = level_table(held.levels, x.device)[unpack(held.codes, held.bits).int()]
        norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        scale = norm / torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
        return replace(held, scale=stored_scale(scale) * (norm > 0))
