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
        self.normalised = logits.dtype == torch.float32 and not scoring_kernel.runs_on(logits)
        self.p: Logits | None = None
        if self.normalised:
            for i, rows in _chunks(logits):
                logits[i, rows] = logits[i, rows].log_softmax(dim=-1)
            self.p = logits.exp() if logits.device.type == "cpu" else None

    def of_windows(self, windows: slice) -> "Reference":
        """Of some windows of the batch; shares what it holds."""
        some = copy.copy(self)
        some.logits = self.logits[windows]
        some.p = None if self.p is None else self.p[windows]
        return some

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
        log_p = self.logits[window, rows]
        if not self.normalised:
            log_p = log_p.float().log_softmax(dim=-1)
        # of the exact cache itself both are the same numbers, so that its KL is 0 and equal logits have equal losses
        log_q = (
            log_p if logits.data_ptr() == self.logits[window, rows].data_ptr() else logits.float().log_softmax(dim=-1)
        )
        nll = -log_q.gather(1, targets[:, None])[:, 0]
        p = log_p.exp() if self.p is None else self.p[window, rows]
        delta = log_q - log_p
        if delta.device.type != "cpu" or delta.amax() > FAR:  # the largest is quickly found, where it may be waited for
            far = delta > FAR
            near = delta.clamp(max=FAR)
            kl = torch.where(far, log_q.exp(), torch.expm1(near).sub_(near).mul_(p)).sum(dim=-1)
        else:
            kl = torch.linalg.vecdot(torch.expm1(delta).sub_(delta), p)
        return torch.stack([nll, kl, (log_q.argmax(dim=-1) == log_p.argmax(dim=-1)).float()])


def _chunks(logits: Logits) -> Iterator[tuple[int, slice]]:
    """(window, rows) that are worked on at a time."""
    batch, scored, vocabulary = logits.shape
    size = max(1, AT_ONCE.get(logits.device.type, AT_ONCE["cpu"]) // vocabulary)
    for window in range(batch):
        for first in range(0, scored, size):
            yield window, slice(first, min(first + size, scored))
