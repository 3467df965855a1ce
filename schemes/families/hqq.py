"""Half-quadratic quantization: min–max scale, and a zero that minimises a sparse norm of the error.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"; package `hqq`.
"""

from dataclasses import dataclass
from typing import Literal

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.grouping import Axis, GroupSize
from kvdelta.schemes.half_quadratic import (
    Each,
    GroupSolver,
    HalfQuadratic,
    HalfQuadraticQuantizer,
    Rows,
    ZeroSolver,
    check_steps,
    start,
)

Bits = Literal[1, 2, 3, 4, 8]
Solver = Literal["batched", "library"]
Stop = Literal["groups", "reference"]

PACKAGE_SETTINGS = (20, 0.7, 10.0, False, "groups")
"""iters, p, beta (which the package does not let a caller choose), our own options at their defaults."""
COUPLED = "one stopping error over the whole tensor couples its groups"


@dataclass(frozen=True)
class ReferenceSolver(ZeroSolver):
    """Stops where the package would, by one error over the whole tensor, and gives its codes."""

    iters: int
    p: float
    beta: float

    def __post_init__(self) -> None:
        check_steps(self.iters, self.p, self.beta)

    @property
    def independent(self) -> bool | str:
        return COUPLED

    def solve(self, groups: Rows, max_code: int) -> tuple[Each, Each]:
        inverse, zero = start(groups, max_code)
        steps = HalfQuadratic(max_code, self.iters, self.p, self.beta)
        return inverse, steps.solve_as_reference(groups, inverse, zero)


@dataclass(frozen=True)
class PackageSolver(ZeroSolver):
    """The package itself, with its own settings."""

    @property
    def independent(self) -> bool | str:
        return COUPLED

    def solve(self, groups: Rows, max_code: int) -> tuple[Each, Each]:
        from hqq.core.quantize import Quantizer as Library

        _, meta = Library.quantize(
            groups,
            nbits=max_code.bit_length(),
            group_size=groups.shape[-1],
            axis=1,
            bitpack=False,
            device=str(groups.device),
        )
        # cloned: the package returns tensors of inference mode
        scale, zero = (meta[name].float().clone().flatten() for name in ("scale", "zero"))
        return 1.0 / scale, zero


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
    normalize: bool = False,
    solver: Solver = "batched",
    stop: Stop = "groups",
) -> tuple[TensorScheme, TensorScheme]:
    """solver="batched" (ours): each group keeps the zero with the least mean |x − x̂| (stop="groups"), or all stop where
    the package would (stop="reference"). solver="library": the package itself."""
    if solver == "library" and (iters, p, beta, normalize, stop) != PACKAGE_SETTINGS:
        raise UserError(
            "solver=library takes no iters, p, beta, normalize or stop: the package's quantizer has its own 20, 0.7, 10 "
            "and a stop over the whole tensor; leave them out, or use solver=batched"
        )
    if stop == "reference" and normalize:
        raise UserError("stop=reference gives the package's codes, which does not normalize; leave one of them out")
    zero: ZeroSolver = GroupSolver(iters, p, beta, normalize)
    if solver == "library":
        zero = PackageSolver()
    elif stop == "reference":
        zero = ReferenceSolver(iters, p, beta)
    return (
        TensorScheme(HalfQuadraticQuantizer(key_bits, group_size, key_axis, zero)),
        TensorScheme(HalfQuadraticQuantizer(value_bits, group_size, value_axis, zero)),
    )


FAMILY = Family(
    hqq,
    "min–max scale, zero optimised for a sparse norm of the error (half-quadratic solver)",
    "Badri and Shaji 2023, Half-Quadratic Quantization; package hqq",
    formula="code = round(x/s + z), x̂ = (code − z)·s, s = (max − min)/(2^b − 1); z from 20 steps of e = shrink(x − x̂), "
    "z = mean(code − (x − e)/s). normalize=true divides a group by its range first. Bits: b + 32/G.",
    good="2 and 3 bits with groups of ordinary size: 6 % less error than min–max at groups of 32.",
    fails="numbers of size 10 and more, where beta = 10 shrinks nothing (normalize=true helps); 4 bits, where the loss is "
    "that of min–max and KL a tenth lower. Costs the time of 20 quantizations.",
    short={f"hqq{bits}": {"bits": bits} for bits in (1, 2, 3, 4, 8)},
    compared="with the hqq package, run on real keys and values: stop=reference gives its codes bit for bit on a CPU in float32, before "
    "scale and zero are rounded. Departs by default: of the zeros of all steps each group keeps the one with the least error of its own, "
    "where the package stops all groups at once and takes the zero behind that step: the mean error is the package's to 1 %, and no group "
    "has a larger one with one step more (iters=21).",
)
