"""Half-quadratic quantization: min–max scale, and a zero that minimises a sparse norm of the error.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"; package `hqq`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from schemes.affine import FLOAT16_MAX, AffineQuantizer, QParams, stored_scale
from schemes.base import TensorScheme
from schemes.family import Family
from schemes.grouping import Axis, GroupSize
from schemes.half_quadratic import HalfQuadratic, start

Bits = Literal[1, 2, 3, 4, 8]
Solver = Literal["batched", "library"]
Stop = Literal["groups", "reference"]

PACKAGE_SETTINGS = (20, 0.7, 10.0, "groups")  # iters, p, beta (which it does not let a caller choose), and our default


@dataclass(frozen=True)
class HQQQuantizer(AffineQuantizer):
    """x̂ = (code − zero) · scale, zero in code units and not an integer.

    solver="batched" (ours): a fixed number of iterations, groups independent, no host synchronization; each group
    keeps the zero with the least mean |x − x̂| (stop="groups"). stop="reference" stops where the package would, by
    one error over the whole tensor, and gives its codes. solver="library": the package itself.
    """

    iters: int = 20
    p: float = 0.7
    beta: float = 10.0
    solver: Solver = "batched"
    stop: Stop = "groups"

    bounded: ClassVar[bool | str] = "the optimised zero may clip the ends of a group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iters < 1:
            raise ValueError(f"iters={self.iters}: the solver makes at least 1 iteration")
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p}: the norm of the error has 0 < p ≤ 1")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta={self.beta}: the shrinkage 1/beta needs a positive, finite beta")
        asked = (self.iters, self.p, self.beta, self.stop)
        if self.solver == "library" and asked != PACKAGE_SETTINGS:
            raise ValueError(
                "solver=library takes no iters, p, beta or stop: the package's quantizer has its own 20, 0.7, 10 and a "
                "stop over the whole tensor; leave them out, or use solver=batched"
            )

    @property
    def independent(self) -> bool | str:  # type: ignore[override]
        if self.solver == "library" or self.stop == "reference":
            return "one stopping error over the whole tensor couples its groups"
        return True

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        flat = groups.flatten(0, -2)
        if self.solver == "library":
            scale, zero = self._library(flat)
        else:
            inverse, zero = start(flat, self.max_code)
            solver = HalfQuadratic(self.max_code, self.iters, self.p, self.beta)
            if self.stop == "reference":
                zero = solver.solve_as_reference(flat, inverse, zero)
            else:
                # a zero beyond float16 could not be stored: nearly constant groups far from 0 get a coarser scale
                limit = FLOAT16_MAX / flat.abs().amax(-1).clamp_(min=1e-30)
                inverse, zero = start(flat, self.max_code, limit)
                zero = solver.solve(flat, inverse, zero)
            scale = 1.0 / inverse
        lead = groups.shape[:-1]
        return QParams(stored_scale(scale).view(lead), zero=zero.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().view(lead))

    def _library(self, flat: Float[Tensor, "groups group"]) -> tuple[Tensor, Tensor]:
        from hqq.core.quantize import Quantizer as Library

        _, meta = Library.quantize(
            flat, nbits=self.bits, group_size=flat.shape[-1], axis=1, bitpack=False, device=str(flat.device)
        )
        # cloned: the package returns tensors of inference mode
        return meta["scale"].float().clone().flatten(), meta["zero"].float().clone().flatten()


def hqq(
    *,
    key_bits: Bits = 4,
    value_bits: Bits = 4,
    key_axis: Axis = "token",
    value_axis: Axis = "token",
    group_size: GroupSize = 64,
    iters: int = 20,
    p: float = 0.7,
    beta: float = 10.0,
    solver: Solver = "batched",
    stop: Stop = "groups",
) -> tuple[TensorScheme, TensorScheme]:
    return (
        TensorScheme(HQQQuantizer(key_bits, group_size, key_axis, iters, p, beta, solver, stop)),
        TensorScheme(HQQQuantizer(value_bits, group_size, value_axis, iters, p, beta, solver, stop)),
    )


FAMILY = Family(
    hqq,
    "min–max scale, zero optimised for a sparse norm of the error (half-quadratic solver)",
    "Badri and Shaji 2023, Half-Quadratic Quantization; package hqq",
    short={f"hqq{bits}": {"bits": bits} for bits in (1, 2, 3, 4, 8)},
)
