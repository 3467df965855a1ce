"""Half-quadratic quantization: min–max scale, and a zero that minimises a sparse norm of the error.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"; package `hqq`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from schemes.affine import FLOAT16_MAX, AffineQuantizer, QParams, stored_scale
from schemes.base import TensorScheme
from schemes.family import Family
from schemes.grouping import Axis, GroupSize

Bits = Literal[1, 2, 3, 4, 8]
Solver = Literal["batched", "library"]
Stop = Literal["groups", "reference"]

TILE = 4096  # groups solved at a time on a CPU, so that 20 iterations stay in its cache
WORTH_LEAVING_OUT = 0.8  # groups that settled are left out once fewer than this share still moves


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
            if self.stop == "reference":
                zero = solve_as_reference(flat, inverse, zero, self.max_code, self.iters, self.p, self.beta)
            else:
                # a zero beyond float16 could not be stored: nearly constant groups far from 0 get a coarser scale
                limit = FLOAT16_MAX / flat.abs().amax(-1).clamp_(min=1e-30)
                inverse, zero = start(flat, self.max_code, limit)
                zero = solve(flat, inverse, zero, self.max_code, self.iters, self.p, self.beta)
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


def start(
    groups: Float[Tensor, "groups group"], max_code: int, limit: Float[Tensor, "groups"] | None = None
) -> tuple[Float[Tensor, "groups"], Float[Tensor, "groups"]]:
    """Min–max: inverse scale (1 where the range is at most 1e-4, at most 2e4 and `limit`) and zero, per group."""
    low, high = torch.aminmax(groups, dim=-1)
    spread = high - low
    inverse = torch.where(spread <= 1e-4, 1.0, max_code / spread).clamp_(max=2e4)
    if limit is not None:
        inverse = torch.minimum(inverse, limit)
    return inverse, -low * inverse


def _residual(x, inverse, zero, max_code):
    """Codes and x − x̂ at the present zero; all [groups, group], parameters [groups, 1]."""
    codes = (x * inverse).add_(zero).round_().clamp_(0, max_code)
    return codes, x - (codes - zero).div_(inverse)


def _quick_power(x, exponent):
    """x^exponent for x ≥ 0 to the last bit or two; half the time of torch.pow, most of a step's, on a CPU."""
    return x.log().mul_(exponent).exp_()


def _next_zero(x, inverse, codes, residual, p, beta, power):
    """One proximal step: shrink the residual, then the mean of code − (x − e) / scale."""
    shrunk = residual.abs()
    shrunk.sub_((1.0 / beta) * power(shrunk, p - 1)).clamp_min_(0.0).mul_(residual.sign())
    return (codes - (x - shrunk) * inverse).mean(dim=-1, keepdim=True)


def solve(
    groups: Float[Tensor, "groups group"],
    inverse: Float[Tensor, "groups"],
    zero: Float[Tensor, "groups"],
    max_code: int,
    iters: int,
    p: float,
    beta: float,
) -> Float[Tensor, "groups"]:
    """The zero of each group with the least mean |x − x̂| among `iters` proximal steps; groups independent.

    On a CPU a group whose zero no longer moves is left out of further steps, which would not change it.
    """
    on_cpu = groups.device.type == "cpu"  # elsewhere, counting what moves would wait for the device
    size = TILE if on_cpu else max(1, len(groups))
    best = torch.empty_like(zero)
    for first in range(0, len(groups), size):
        tile = slice(first, first + size)
        x, scale_inverse, at = groups[tile], inverse[tile, None], zero[tile, None]
        rows = torch.arange(first, first + len(x), device=groups.device)
        kept, least = at, torch.full_like(at, float("inf"))
        for _ in range(iters):
            codes, residual = _residual(x, scale_inverse, at, max_code)
            error = residual.abs().mean(dim=-1, keepdim=True)
            kept = torch.where(error < least, at, kept)
            least = torch.minimum(error, least)
            before, at = at, _next_zero(x, scale_inverse, codes, residual, p, beta, _quick_power)
            if on_cpu:
                moved = (at != before)[:, 0].nonzero()[:, 0]
                if len(moved) < WORTH_LEAVING_OUT * len(rows):
                    best[rows] = kept[:, 0]
                    rows, x, scale_inverse, at, kept, least = (
                        part[moved] for part in (rows, x, scale_inverse, at, kept, least)
                    )
        best[rows] = kept[:, 0]
    return best


def solve_as_reference(
    groups: Float[Tensor, "groups group"],
    inverse: Float[Tensor, "groups"],
    zero: Float[Tensor, "groups"],
    max_code: int,
    iters: int,
    p: float,
    beta: float,
) -> Float[Tensor, "groups"]:
    """The zero at which the `hqq` package stops: when the mean error over the whole tensor no longer falls.

    Bit-equal to the package on a CPU in float32 (on CUDA it solves in float16).
    """
    at, scale_inverse, best = zero[:, None], inverse[:, None], float("inf")
    for _ in range(iters):
        codes, residual = _residual(groups, scale_inverse, at, max_code)
        at = _next_zero(groups, scale_inverse, codes, residual, p, beta, torch.pow)
        error = residual.abs().mean().item()
        if not error < best:
            break
        best = error
    return at[:, 0]


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
