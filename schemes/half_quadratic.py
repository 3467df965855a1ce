"""The half-quadratic solver: the zero of a group that minimises a sparse norm of its error; the scale stays.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". Groups are rows, [groups, group];
parameters one a group, [groups]; codes are round(x · inverse + zero), and x̂ = (code − zero) / inverse.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import FLOAT16_MAX, AffineQuantizer, QParams, stored_scale
from kvdelta.schemes.errors import UserError

TILE = 4096  # groups solved at a time on a CPU, so that 20 iterations stay in its cache
MOST = 1000  # iterations; after some twenty no zero moves
WORTH_LEAVING_OUT = 0.8  # groups that settled are left out once fewer than this share still moves

Rows = Float[Tensor, "groups group"]
Column = Float[Tensor, "groups 1"]
Each = Float[Tensor, "groups"]


def start(groups: Rows, max_code: int, limit: Each | None = None) -> tuple[Each, Each]:
    """Min–max: inverse scale (1 where the range is at most 1e-4, at most 2e4 and `limit`) and zero, per group."""
    low, high = torch.aminmax(groups, dim=-1)
    spread = high - low
    inverse = torch.where(spread <= 1e-4, 1.0, max_code / spread).clamp_(max=2e4)
    if limit is not None:
        inverse = torch.minimum(inverse, limit)
    return inverse, -low * inverse


def _quick_power(x: Rows, exponent: float) -> Rows:
    """x^exponent for x ≥ 0 to the last bit or two; half the time of torch.pow, most of a step's, on a CPU."""
    if exponent == 0:  # p = 1, soft thresholding: 0 · log 0 would be no number
        return torch.ones_like(x)
    return x.log().mul_(exponent).exp_()


@dataclass(frozen=True)
class HalfQuadratic:
    """`iters` proximal steps on the p-norm of the error with the penalty beta; codes go from 0 to max_code."""

    max_code: int
    iters: int
    p: float
    beta: float

    def solve(self, groups: Rows, inverse: Each, zero: Each) -> Each:
        """The zero of each group with the least mean |x − x̂| among all steps; groups independent."""
        size = TILE if groups.device.type == "cpu" else max(1, len(groups))
        best = torch.empty_like(zero)
        # else the order of a sum would depend on whether groups are left out, and so on other rows
        groups = groups.contiguous()
        for first in range(0, len(groups), size):
            tile = slice(first, first + size)
            self._solve_tile(groups[tile], inverse[tile, None], zero[tile, None], best[tile])
        return best

    def _solve_tile(self, x: Rows, inverse: Column, zero: Column, best: Each) -> None:
        """Into `best`. On a CPU a group whose zero no longer moves is left out of further steps, which would not
        change it; elsewhere, counting what moves would wait for the device."""
        rows = torch.arange(len(x), device=x.device)
        kept, least = zero, torch.full_like(zero, float("inf"))
        for step in range(self.iters):
            codes, residual = self._residual(x, inverse, zero)
            size = residual.abs()
            error = size.mean(dim=-1, keepdim=True)
            kept = torch.where(error < least, zero, kept)
            least = torch.minimum(error, least)
            if step == self.iters - 1:
                break  # a further zero would not be looked at
            before, zero = zero, self._next_zero(x, inverse, codes, residual, size, _quick_power)
            if x.device.type != "cpu":
                continue
            moved = (zero != before)[:, 0].nonzero()[:, 0]
            if len(moved) < WORTH_LEAVING_OUT * len(rows):
                best[rows] = kept[:, 0]
                rows, x, inverse, zero, kept, least = (part[moved] for part in (rows, x, inverse, zero, kept, least))
        best[rows] = kept[:, 0]

    def solve_as_reference(self, groups: Rows, inverse: Each, zero: Each) -> Each:
        """The zero at which the `hqq` package stops: when the mean error over the whole tensor no longer falls.

        Bit-equal to the package on a CPU in float32 (on CUDA it solves in float16).
        """
        at, column = zero[:, None], inverse[:, None]
        best = torch.full_like(zero[0], float("inf"))
        falls = torch.ones_like(best, dtype=torch.bool)
        for _ in range(self.iters):
            codes, residual = self._residual(groups, column, at)
            size = residual.abs()
            error = size.mean()
            at = torch.where(falls, self._next_zero(groups, column, codes, residual, size, torch.pow), at)
            falls, best = falls & (error < best), torch.minimum(error, best)
            if groups.device.type == "cpu" and not falls:  # elsewhere the host would wait: all steps, the rest in vain
                break
        return at[:, 0]

    def _residual(self, x: Rows, inverse: Column, zero: Column) -> tuple[Rows, Rows]:
        """Codes, as floats, and x − x̂ at the present zero."""
        codes = (x * inverse).add_(zero).round_().clamp_(0, self.max_code)
        rebuilt = (codes - zero).div_(inverse)
        return codes, torch.sub(x, rebuilt, out=rebuilt)

    def _next_zero(
        self,
        x: Rows,
        inverse: Column,
        codes: Rows,
        residual: Rows,
        size: Rows,
        power: Callable[[Tensor, float], Tensor],
    ) -> Column:
        """One proximal step: shrink the residual, of absolute `size`, to e, then the mean of code − (x − e) · inverse. In
        the memory of codes, residual and size, which the caller needs no longer: fresh memory would cost a CPU its cache."""
        shrunk = size.sub_(power(size, self.p - 1).mul_(1.0 / self.beta)).clamp_min_(0.0).mul_(residual.sign_())
        moved = torch.sub(x, shrunk, out=shrunk).mul_(inverse)
        return codes.sub_(moved).mean(dim=-1, keepdim=True)


class ZeroSolver(ABC):
    """Chooses the inverse scale and the zero of each group. Subclasses are final frozen dataclasses."""

    @property
    def independent(self) -> bool | str:
        """Whether groups are solved independently; a string says why not."""
        return True

    @abstractmethod
    def solve(self, groups: Rows, max_code: int) -> tuple[Each, Each]: ...


@dataclass(frozen=True)
class GroupSolver(ZeroSolver):
    """Of min–max parameters the zero is optimised: a fixed number of steps, groups independent, no host synchronization.

    normalize: divide each group by its range before solving (ours), so that beta means the same for all.
    """

    iters: int = 20
    p: float = 0.7
    beta: float = 10.0
    normalize: bool = False

    def __post_init__(self) -> None:
        check_steps(self.iters, self.p, self.beta)

    def solve(self, groups: Rows, max_code: int) -> tuple[Each, Each]:
        # a zero beyond float16 could not be stored: nearly constant groups far from 0 get a coarser scale
        limit = FLOAT16_MAX / torch.linalg.vector_norm(groups, float("inf"), dim=-1).clamp_(min=1e-30)
        inverse, zero = start(groups, max_code, limit)
        steps = HalfQuadratic(max_code, self.iters, self.p, self.beta)
        if not self.normalize:
            return inverse, steps.solve(groups, inverse, zero)
        # in units of the range that the scale spans: solved there, the zero is the same number of codes
        unit = inverse / max_code
        return inverse, steps.solve(groups * unit[:, None], torch.full_like(inverse, max_code), zero)


def check_steps(iters: int, p: float, beta: float) -> None:
    """UserError for settings without a meaning."""
    if not 1 <= iters <= MOST:
        raise UserError(f"iters={iters}: the solver makes at least 1 iteration, and at most {MOST}")
    if not 0 < p <= 1:
        raise UserError(f"p={p}: the norm of the error has 0 < p ≤ 1")
    if not 0 < beta < float("inf"):
        raise UserError(f"beta={beta}: the shrinkage 1/beta needs a positive, finite beta")


@dataclass(frozen=True)
class HalfQuadraticQuantizer(AffineQuantizer):
    """x̂ = (code − zero) · scale, zero in code units and not an integer: the one that `solver` finds."""

    solver: ZeroSolver = GroupSolver()

    @property
    def bounded(self) -> bool | str:
        return "the optimised zero may clip the ends of a group"

    @property
    def independent(self) -> bool | str:
        return self.solver.independent

    @property
    def rows_independent(self) -> bool | str:
        return self.solver.independent

    @property
    def appends(self) -> bool | str:
        return self.solver.independent

    @property
    def kernel(self) -> tuple[str, tuple]:
        one = self.solver
        if isinstance(one, GroupSolver):
            return "half-quadratic", (one.iters, one.p, one.beta, one.normalize)
        return super().kernel

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        lead = groups.shape[:-1]
        inverse, zero = self.solver.solve(groups.flatten(0, -2), self.max_code)
        zero = zero.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()
        return QParams(stored_scale(1.0 / inverse).view(lead), zero=zero.view(lead))
