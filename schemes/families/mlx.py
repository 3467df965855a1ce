"""MLX's affine quantization, which mlx-lm's KV cache takes: a grid that has 0 and the end of larger magnitude."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import AffineQuantizer, QParams, stored_offset, stored_scale
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family

Bits = Literal[2, 3, 4, 5, 6, 8]
LEAST_SCALE = 1e-7


@dataclass(frozen=True)
class AnchoredQuantizer(AffineQuantizer):
    """Counts from the end of larger magnitude, so that the scale is negative where that is the maximum; the scale is then
    changed so that a whole number of steps leads from there to 0."""

    @property
    def bounded(self) -> bool | str:
        return "the changed scale may be too small for the other end, which saturates"

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        low, high = torch.aminmax(groups, dim=-1)
        upwards = low.abs() > high.abs()
        edge = torch.where(upwards, low, high)
        step = ((high - low) * self.step_of_range).clamp(min=LEAST_SCALE)
        steps = (edge.abs() / step).round()
        scale = torch.where(steps == 0, step, edge.abs() / steps)
        return QParams(stored_scale(scale) * torch.where(upwards, 1.0, -1.0).half(), offset=stored_offset(edge))


def mlx(
    *, key_bits: Bits = 4, value_bits: Bits = 4, group_size: Literal[32, 64, 128] = 64
) -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(AnchoredQuantizer(key_bits, group_size)), TensorScheme(
        AnchoredQuantizer(value_bits, group_size)
    )


FAMILY = Family(
    mlx,
    "asymmetric uniform per token, on a grid that has 0",
    "MLX, mlx.core.quantize in its affine mode; mlx-lm, --kv-bits and --kv-group-size",
    formula="e = the end of larger magnitude, s = ∓(max − min)/(2^b − 1) from there, changed to e/round(e/s); code = round((x − "
    "e)/s), x̂ = code·s + e. Bits: b + 32/G.",
    good="what mlx-lm's --kv-bits does; 0 stays 0.",
    fails="as asymmetric; at 2 bits the changed scale may be too small by a quarter, and the other end saturates.",
    compared="with mlx.core.quantize (0.32, on a CPU), run on real keys and values: codes but for those near a boundary. Departs: "
    "codes are taken with the rounded scale and end; mlx-lm's wait for 5000 tokens before it quantizes any is missing.",
)
