"""The half-quadratic solver: the zero of a group that minimises a sparse norm of its error; the scale stays.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models". Groups are rows, [groups, group];
parameters one a group, [groups]; codes are round(x · inverse + zero), and x̂ = (code − zero) / inverse.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log2

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import FLOAT16_MAX, AffineQuantizer, QParams, stored_scale
from kvdelta.schemes.errors import UserError

TILE = 8192  # groups solved at a time on a CPU, so that 20 iterations stay in its cache
MOST = 1000  # iterations; after some twenty no zero moves
WORTH_LEAVING_OUT = 0.8  # groups that settled are left out once fewer than this share still moves

Rows = Float[Tensor, "groups group"]
Each = Float[Tensor, "groups"]


def start(groups: Rows, max_code: int, *, storable: bool = False) -> tuple[Each, Each]:
    """Min–max: inverse scale (1 where the range is at most 1e-4, at most 2e4) and zero, per group. storable: and such that no
    zero is beyond float16, which could not be stored: nearly constant groups far from 0 get a coarser scale."""
    low, high = torch.aminmax(groups, dim=-1)
    spread = high - low
    inverse = torch.where(spread <= 1e-4, 1.0, max_code / spread).clamp_(max=2e4)
    if storable:
        largest = torch.maximum(low.abs(), high.abs()).clamp_(min=1e-30)
        inverse = torch.minimum(inverse, FLOAT16_MAX / largest)
    return inverse, -low * inverse


@dataclass(frozen=True)
class HalfQuadratic:
    """`iters` proximal steps on the p-norm of the error with the penalty beta; codes go from 0 to max_code."""

    max_code: int
    iters: int
    p: float
    beta: float

    def solve(self, groups: Rows, inverse: Each, zero: Each) -> Each:
        """The zero of each group with the least mean |x − x̂| among all steps; groups independent."""
        best = torch.empty_like(zero)
        size = min(len(groups), TILE if groups.device.type == "cpu" else len(groups))
        # fresh memory in each step would take as long as its arithmetic
        scratch = groups.new_empty(4, size * groups.shape[1])
        for first in range(0, len(groups), max(1, size)):
            tile = slice(first, first + size)
            self._solve_tile(groups[tile], inverse[tile], zero[tile], best[tile], scratch)
        return best

    def _solve_tile(self, x: Rows, inverse: Each, zero: Each, best: Each, scratch: Tensor) -> None:
        """Into `best`. On a CPU a group whose zero no longer moves is left out of further steps, which would not
        change it; elsewhere, counting what moves would wait for the device."""
        rows = torch.arange(len(x), device=x.device)
        kept, least = zero, torch.full_like(zero, float("inf"))
        scaled, residual, size, share = (part[: x.numel()].view(x.shape) for part in scratch)
        torch.mul(x, inverse[:, None], out=scaled)
        threshold = self.threshold(inverse)
        for step in range(self.iters):
            error = self.error(scaled, zero, residual, size)
            kept = torch.where(error < least, zero, kept)
            least = torch.minimum(error, least)
            if step == self.iters - 1:
                break  # a further zero would not be looked at
            before, zero = zero, self.next_zero(threshold, zero, residual, size, share)
            if x.device.type != "cpu":
                continue
            moved = (zero != before).nonzero()[:, 0]
            if len(moved) < WORTH_LEAVING_OUT * len(rows):
                best[rows] = kept
                still = scaled[moved]
                scaled, residual, size, share = (part[: still.numel()].view(still.shape) for part in scratch)
                scaled.copy_(still)
                rows, zero, kept, least, threshold = (part[moved] for part in (rows, zero, kept, least, threshold))
        best[rows] = kept

    def threshold(self, inverse: Each) -> Each:
        """log2 of what shrinking takes of a residual of one code, in codes."""
        return inverse.log2().mul_(2 - self.p).sub_(log2(self.beta))

    def error(self, scaled: Rows, zero: Each, residual: Rows, size: Rows) -> Each:
        """Mean |x − x̂|, in codes. scaled: x · inverse. Into residual: x · inverse + zero − code; into size: its absolute."""
        torch.add(scaled, zero[:, None], out=residual)
        residual.sub_(torch.round(residual, out=size).clamp_(0, self.max_code))
        return torch.abs(residual, out=size).mean(dim=-1)

    def next_zero(self, threshold: Each, zero: Each, residual: Rows, size: Rows, share: Rows) -> Each:
        """The mean of code − (x − e) · inverse, with e the residual shrunk: zero − mean(residual · share), where share is what of it
        shrinking takes, |residual|^(p−2) · inverse^(2−p) / beta, at most 1. Into share, which is memory to work in."""
        # exp2 takes a quarter of exp's time on a CPU, and pow twice that of log2 and exp together
        torch.add(threshold[:, None], torch.log2(size, out=share), alpha=self.p - 2, out=share)
        return zero - share.exp2_().clamp_(max=1.0).mul_(residual).mean(dim=-1)

    def solve_as_reference(self, groups: Rows, inverse: Each, zero: Each) -> Each:
        """The zero at which the `hqq` package stops: when the mean error over the whole tensor no longer falls.

        Bit-equal to the package on a CPU in float32 (on CUDA it solves in float16).
        """
        at, column = zero[:, None], inverse[:, None]
        best = torch.full_like(zero[0], float("inf"))
        falls = torch.ones_like(best, dtype=torch.bool)
        for _ in range(self.iters):
            codes = (groups * column).add_(at).round_().clamp_(0, self.max_code)
            residual = groups - (codes - at).div_(column)
            size = residual.abs()
            error = size.mean()
            shrunk = size.sub_(size.pow(self.p - 1).mul_(1.0 / self.beta)).clamp_min_(0.0).mul_(residual.sign_())
            moved = codes.sub_((groups - shrunk).mul_(column)).mean(dim=-1, keepdim=True)
            at = torch.where(falls, moved, at)
            falls, best = falls & (error < best), torch.minimum(error, best)
            if groups.device.type == "cpu" and not falls:  # elsewhere the host would wait: all steps, the rest in vain
                break
        return at[:, 0]


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
        inverse, zero = start(groups, max_code, storable=True)
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
