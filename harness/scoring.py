"""From logits to scores: loss, KL from exact and top-1 agreement of each scored token, in float32 by rows."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from harness import scoring_kernel
from harness.divergence import FAR
from harness.subject.windows import Batch
from schemes.errors import UserError

Logits = Float[Tensor, "batch scored vocabulary"]

AT_ONCE = {"cpu": 2**18, "cuda": 2**25}
"""Numbers scored at a time, by device: what stays in a cache, and few launches."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Per scored token of each window, float32 on the CPU: loss and KL(p_exact ‖ p_scheme) in nats, and whether the top-1
    token agrees."""

    nll: Float[Tensor, "batch scored"]
    kl: Float[Tensor, "batch scored"]
    top1: Bool[Tensor, "batch scored"]

    @classmethod
    def none(cls, batch: int, scored: int) -> "Scores":
        """Of a contender that failed: NaN."""
        nan = torch.full((batch, scored), torch.nan)
        return cls(nan, nan.clone(), torch.zeros(batch, scored).bool())

    @classmethod
    def joined(cls, windows: "list[Scores]") -> "Scores":
        return cls(*(torch.cat([getattr(one, name) for one in windows]) for name in ("nll", "kl", "top1")))

    def from_window(self, first: int) -> "Scores":
        """With NaN from a window on."""
        rest = Scores.none(self.nll.shape[0] - first, self.nll.shape[1])
        return Scores.joined([Scores(self.nll[:first], self.kl[:first], self.top1[:first]), rest])

    def finite(self) -> Bool[Tensor, "batch"]:
        """Of which windows all numbers are."""
        return torch.isfinite(self.nll).all(1) & torch.isfinite(self.kl).all(1)


class NotFinite(UserError):
    """Numbers that are NaN or infinite: the row that they are of has no score from window `first` of the batch on."""

    def __init__(self, message: str, first: int):
        super().__init__(message)
        self.first = first


WIDER = {"float16": "try --dtype bfloat16 or float32", "bfloat16": "try --dtype float32"}


def check_finite(scores: Scores, batch: Batch, dtype: str, route: str = "") -> None:
    """Raise NotFinite where a loss or KL is NaN or infinite, as they are where a logit is. dtype: of the run, which decides
    what to try."""
    finite = scores.finite()
    if not finite.all():
        first = int(finite.int().argmin())
        window = batch.windows[first]
        way_out = f"; {WIDER[dtype]}" if dtype in WIDER else ""
        raise NotFinite(
            f"{route}NaN or infinite logits in window {window.index} (tokens from {window.start}){way_out}", first
        )


class Reference:
    """What the exact cache predicts. logits: in the model's dtype; float32 ones are normalised in place.

    On a CPU, in float32, its probabilities are kept; on a GPU, where a batch of them is gigabytes, they are computed where they are
    needed from the logits in the model's dtype.
    """

    @torch.inference_mode()
    def __init__(self, logits: Logits):
        self.logits = logits
        self.p: Logits | None = None
        self.top1: Int64[Tensor, "batch scored"] | None = None
        self.log_z: Float[Tensor, "batch scored"] | None = None
        if scoring_kernel.runs_on(logits):
            return
        self.log_z = torch.empty(logits.shape[:2], device=logits.device)
        self.top1 = torch.empty(logits.shape[:2], device=logits.device, dtype=torch.long)
        in_place = logits.dtype == torch.float32
        if in_place and logits.device.type == "cpu":
            self.p = torch.empty_like(logits)
        for i, rows in _chunks(logits):
            x = logits[i, rows].float()
            self.top1[i, rows] = x.argmax(dim=-1)
            self.log_z[i, rows] = x.logsumexp(dim=-1)
            if in_place:
                x -= self.log_z[i, rows, None]
            if self.p is not None:
                torch.exp(x, out=self.p[i, rows])

    def of_windows(self, windows: slice) -> "Reference":
        """Of some windows of the batch; shares what it holds."""
        some = copy.copy(self)
        for name in ("logits", "p", "top1", "log_z"):
            held = getattr(self, name)
            setattr(some, name, held if held is None else held[windows])
        return some

    @torch.inference_mode()
    def itself(self, targets: Int64[Tensor, "batch scored"]) -> Scores:
        """The exact cache's own scores: KL 0."""
        if self.log_z is None:
            return self.score(self.logits, targets)
        chosen = self.logits.gather(2, targets.to(self.logits.device)[..., None])[..., 0].float()
        nll = ((self.log_z if self.logits.dtype != torch.float32 else 0) - chosen).cpu()
        return Scores(nll, torch.zeros_like(nll), torch.ones_like(nll, dtype=torch.bool))

    @torch.inference_mode()
    def score(self, logits: Logits, targets: Int64[Tensor, "batch all_scored"]) -> Scores:
        """Of the first tokens of each window, as many as there are `logits`, which are left as they are.

        KL is Σ p·(expm1(δ) − δ) with δ = log q − log p: no term is negative, nothing cancels in float32, and beyond FAR,
        where expm1 would overflow, the term is q.
        """
        targets = targets[:, : logits.shape[1]].to(logits.device)
        if scoring_kernel.runs_on(logits):
            packed = scoring_kernel.score(logits, self.logits[:, : logits.shape[1]], targets)
        else:
            packed = torch.empty(3, *logits.shape[:2], device=logits.device)
            for i, rows in _chunks(logits):
                packed[:, i, rows] = self._rows(logits[i, rows], i, rows, targets[i, rows])
        nll, kl, agrees = packed.cpu()
        return Scores(nll, kl, agrees.bool())

    def _rows(self, logits: Tensor, window: int, rows: slice, targets: Tensor) -> Tensor:
        assert self.top1 is not None
        log_q = logits.float().log_softmax(dim=-1)
        nll = -log_q.gather(1, targets[:, None])[:, 0]
        log_p = self.logits[window, rows]
        if log_p.dtype != torch.float32:
            assert self.log_z is not None
            log_p = log_p.float() - self.log_z[window, rows, None]
        p = log_p.exp() if self.p is None else self.p[window, rows]
        delta = log_q - log_p
        if delta.device.type != "cpu" or delta.amax() > FAR:  # the largest is quickly found, where it may be waited for
            far = delta > FAR
            near = delta.clamp(max=FAR)
            kl = torch.where(far, log_q.exp(), torch.expm1(near).sub_(near).mul_(p)).sum(dim=-1)
        else:
            kl = torch.linalg.vecdot(torch.expm1(delta).sub_(delta), p)
        return torch.stack([nll, kl, (logits.argmax(dim=-1) == self.top1[window, rows]).float()])


def _chunks(logits: Logits) -> Iterator[tuple[int, slice]]:
    """(window, rows) that are worked on at a time."""
    batch, scored, vocabulary = logits.shape
    size = max(1, AT_ONCE.get(logits.device.type, AT_ONCE["cpu"]) // vocabulary)
    for window in range(batch):
        for first in range(0, scored, size):
            yield window, slice(first, min(first + size, scored))
