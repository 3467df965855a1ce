"""From logits to scores: loss, and KL, TVD and top-1 agreement with exact, of each scored token, in float32 by rows."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from kvdelta.harness.divergence import kl_and_tvd
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import kernels
from kvdelta.schemes.errors import UserError

Logits = Float[Tensor, "batch scored vocabulary"]

AT_ONCE = {"cpu": 2**18, "cuda": 2**25}
"""Numbers scored at a time, by device: what stays in a cache, and few launches."""


PER_TOKEN = ("nll", "kl", "tvd", "top1")


@dataclass(frozen=True, eq=False)
class Scores:
    """Per scored token of each window, float32 on the CPU: loss and KL(p_exact ‖ p_scheme) in nats, the total variation
    distance of the two, and whether the top-1 token agrees."""

    nll: Float[Tensor, "batch scored"]
    kl: Float[Tensor, "batch scored"]
    tvd: Float[Tensor, "batch scored"]
    top1: Bool[Tensor, "batch scored"]

    @classmethod
    def none(cls, batch: int, scored: int) -> "Scores":
        """Of a contender that failed: NaN."""
        nan = torch.full((batch, scored), torch.nan)
        return cls(nan, nan.clone(), nan.clone(), torch.zeros(batch, scored).bool())

    @classmethod
    def joined(cls, windows: "list[Scores]") -> "Scores":
        return cls(*(torch.cat([getattr(one, name) for one in windows]) for name in PER_TOKEN))

    def until(self, first: int) -> "Scores":
        """With NaN from window `first` of the batch on."""
        rest = Scores.none(self.nll.shape[0] - first, self.nll.shape[1])
        return Scores.joined([Scores(*(getattr(self, name)[:first] for name in PER_TOKEN)), rest])

    def finite(self) -> Bool[Tensor, "batch"]:
        """Of which windows all numbers are."""
        return torch.isfinite(self.nll).all(1) & torch.isfinite(self.kl).all(1)


class NotFinite(UserError):
    """Numbers that are NaN or infinite: the row that they are of has no score from window `first` of the batch on."""

    def __init__(self, message: str, first: int):
        super().__init__(message)
        self.first = first


WIDER = {"float16": "try --dtype bfloat16 or float32", "bfloat16": "try --dtype float32"}


def not_finite(scores: Scores, batch: Batch, dtype: str, route: str = "") -> NotFinite | None:
    """Where a loss or KL is NaN or infinite, as they are where a logit is. dtype: of the run, which decides what to try."""
    finite = scores.finite()
    if finite.all():
        return None
    first = int(finite.int().argmin())
    window = batch.windows[first]
    way_out = f"; {WIDER[dtype]}" if dtype in WIDER else ""
    return NotFinite(
        f"{route}NaN or infinite logits in window {window.index} (tokens from {window.start}){way_out}", first
    )


class Softmax(NamedTuple):
    """Of rows of logits. p sums to 1 within float32, whatever the vocabulary: sums are by halves, not one number after
    another, and it is p that is divided, not a rounded log Z that is subtracted. top: the first choice."""

    p: Float[Tensor, "*rows vocabulary"]
    log_z: Float64[Tensor, "*rows 1"]
    top: Int64[Tensor, "*rows"]


class Reference:
    """What the exact cache predicts. logits: in the model's dtype; they are kept, and left as they are.

    On a CPU, in float32, its probabilities are kept too; on a GPU, where a batch of them is gigabytes, they are computed where
    they are needed.
    """

    @torch.inference_mode()
    def __init__(self, logits: Logits):
        self.logits = logits
        self._kept: Softmax | None = None
        if keeps_probabilities(logits.device, logits.dtype) and not _for_the_kernel(logits):
            log_z = logits.new_empty(*logits.shape[:2], 1, dtype=torch.float64)
            kept = Softmax(torch.empty_like(logits), log_z, log_z.new_empty(logits.shape[:2], dtype=torch.int64))
            for i, rows in _chunks(logits):
                for whole, part in zip(kept, _softmax(logits[i, rows]), strict=True):
                    whole[i, rows] = part
            self._kept = kept

    def of_windows(self, windows: slice) -> "Reference":
        """Of some windows of the batch; shares what it holds."""
        some = copy.copy(self)
        some.logits = self.logits[windows]
        some._kept = self._kept and Softmax(*(whole[windows] for whole in self._kept))
        return some

    def itself(self, targets: Int64[Tensor, "batch scored"]) -> Scores:
        """The exact cache's own scores: KL 0, and the losses that equal logits have."""
        return self.score_later(None, targets)()

    def score(self, logits: Logits, targets: Int64[Tensor, "batch all_scored"]) -> Scores:
        """Of the first tokens of each window, as many as there are `logits`, which are left as they are. KL and TVD as
        `kl_and_tvd` has them: KL within 1e-7 nats + 1e-6 of it a token, a mean of KL ≤ 1 within 1e-7 nats."""
        return self.score_later(logits, targets)()

    def score_later(self, logits: Logits | None, targets: Int64[Tensor, "batch all_scored"]) -> Callable[[], Scores]:
        """The same, on their way from the device, which the call of what is returned waits for. None: of the exact cache's own
        logits."""
        rows = self._scored(logits, targets if logits is None else targets[:, : logits.shape[1]])
        if rows.device.type != "cuda":
            return lambda: _scores(rows)
        here = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        with torch.cuda.device(rows.device):
            here.copy_(rows, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()

        def later() -> Scores:
            arrived.synchronize()
            return _scores(here)

        return later

    def sums(self, logits: Logits | None, targets: Int64[Tensor, "batch scored"]) -> Float64[Tensor, "2 batch"]:
        """Loss and KL of each window summed over its tokens, on the device, which nobody waits for. None: of the exact
        cache's own logits."""
        return self._scored(logits, targets)[:2].sum(dim=2, dtype=torch.float64)

    @torch.inference_mode()
    def _scored(self, logits: Logits | None, targets: Tensor) -> Float[Tensor, "4 batch scored"]:
        reference, targets = self.logits[:, : targets.shape[1]], targets.to(self.logits.device)
        given = reference if logits is None else logits
        if _for_the_kernel(given):
            from kvdelta.harness import scoring_kernel

            return scoring_kernel.score(given, reference, targets)
        packed = torch.empty(4, *given.shape[:2], device=given.device)
        for i, rows in _chunks(given):
            x = reference[i, rows].float()
            of_x = _softmax(x) if self._kept is None else Softmax(*(whole[i, rows] for whole in self._kept))
            packed[:, i, rows] = _rows(x if logits is None else logits[i, rows].float(), x, of_x, targets[i, rows])
        return packed


def keeps_probabilities(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a `Reference` holds them beside the logits."""
    return device.type == "cpu" and dtype == torch.float32


def losses(logits: Float[Tensor, "rows vocabulary"], targets: Int64[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Of the targets, in nats, within float32's rounding of the logits; torch's log_softmax is off by more the larger the
    vocabulary is, on a CPU."""
    return logits.float().logsumexp(-1) - logits.gather(1, targets[:, None])[:, 0].float()


def _scores(rows: Float[Tensor, "4 batch scored"]) -> Scores:
    nll, kl, tvd, agrees = rows.cpu()  # as it is where it is there
    return Scores(nll, kl, tvd, agrees.bool())


def _rows(
    y: Float[Tensor, "rows vocabulary"],
    x: Float[Tensor, "rows vocabulary"],
    of_x: Softmax,
    targets: Int64[Tensor, "rows"],
) -> Float[Tensor, "4 rows"]:
    """Of the logits y against x, the exact ones."""
    if y is x:
        log_z, top, scratch = of_x.log_z, of_x.top, torch.empty_like(x)
    else:
        scratch, _, log_z, top = _exponentials(y)
    nll = (log_z - y.gather(1, targets[:, None]))[:, 0].float()
    # from the logits, which are near each other, not from their logarithms, each of which is rounded to its own size
    delta = torch.sub(y, x, out=scratch).sub_((log_z - of_x.log_z).float())
    kl, tvd = kl_and_tvd(delta, of_x.p, lambda: (y - log_z.float()).exp_())
    return torch.stack([nll, kl, tvd, (top == of_x.top).float()])


def _softmax(x: Float[Tensor, "rows vocabulary"]) -> Softmax:
    exponentials, total, log_z, top = _exponentials(x)
    return Softmax(exponentials.div_(total), log_z, top)


def _exponentials(
    x: Float[Tensor, "rows vocabulary"],
) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows 1"], Float64[Tensor, "rows 1"], Int64[Tensor, "rows"]]:
    """exp(x − its largest), their sum, log Z and the first choice of each row."""
    largest, top = x.max(dim=-1, keepdim=True)  # argmax takes twice as long on a CPU
    exponentials = (x - largest).exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    return exponentials, total, total.double().log() + largest, top[:, 0]


def _for_the_kernel(x: Tensor) -> bool:
    """Where the kernels of schemes run too, for numbers that are computed with in float32."""
    return x.dtype != torch.float64 and kernels.available(x.device, x.numel())


def _chunks(logits: Logits) -> Iterator[tuple[int, slice]]:
    """(window, rows) that are worked on at a time."""
    batch, scored, vocabulary = logits.shape
    size = max(1, AT_ONCE.get(logits.device.type, AT_ONCE["cpu"]) // vocabulary)
    for window in range(batch):
        for first in range(0, scored, size):
            yield window, slice(first, min(first + size, scored))
