"""The passes of an evaluation: prefill once, then score the suffix over a cache.

Every protocol scores the same `score_length − 1` tokens of a window; losses are in nats.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import DynamicCache

from harness.divergence import kl_terms
from harness.subject.forward import forward
from harness.subject.windows import Window
from schemes.errors import UserError

Protocol = Literal["two-pass", "stepwise", "single-pass"]

ROWS = 128  # rows of logits scored at a time, so that temporaries stay small at any vocabulary


@dataclass(frozen=True, eq=False)
class Scores:
    """Per scored token, float32 on the CPU: loss, KL(p_exact ‖ p_scheme), and whether the top-1 token agrees."""

    nll: Float[Tensor, "scored"]
    kl: Float[Tensor, "scored"]
    top1: Bool[Tensor, "scored"]

    @classmethod
    def none(cls, scored: int) -> "Scores":
        """Of a contender that failed: NaN."""
        return cls(torch.full((scored,), torch.nan), torch.full((scored,), torch.nan), torch.zeros(scored).bool())


@torch.inference_mode()
def prefill(model: Any, prefix: Int64[Tensor, "batch prefix"]) -> DynamicCache:
    """Pass 1: the prefix in one exact forward; its keys and values. It does not depend on the scheme."""
    cache = DynamicCache(config=model.config)
    fill_live(model, prefix, cache)
    return cache


@torch.inference_mode()
def fill_live(model: Any, prefix: Int64[Tensor, "batch prefix"], cache: Any) -> None:
    """Pass 1 straight into a cache. One row of logits: the language-model head is not needed."""
    forward(model, prefix, cache, logits_to_keep=1)


@torch.inference_mode()
def suffix_logits(
    model: Any, cache: Any, suffix: Int64[Tensor, "1 suffix"], step: int | None = None
) -> Float[Tensor, "scored vocabulary"]:
    """Pass 2 over a filled cache: float32 logits that predict suffix tokens 1, 2, …

    step: tokens per forward; None is the whole suffix in one.
    """
    chunks = suffix.split(step or suffix.shape[1], dim=1)
    rows = [forward(model, chunk, cache).logits[0] for chunk in chunks]
    return torch.cat(rows)[:-1].float() if len(rows) > 1 else rows[0][:-1].float()


@torch.inference_mode()
def single_pass_logits(model: Any, cache: Any, window: Window) -> Float[Tensor, "scored vocabulary"]:
    """The whole window in one forward, which writes the cache and does not read it."""
    keep = window.suffix.shape[1]
    return forward(model, window.tokens[None], cache, logits_to_keep=keep).logits[0, :-1].float()


class NotFinite(UserError):
    """Numbers that are NaN or infinite in a window: the row that they are of has no score."""


WIDER = {"float16": "try --dtype bfloat16 or float32", "bfloat16": "try --dtype float32"}


def check_finite(numbers: Tensor, what: str, window: Window, dtype: str) -> None:
    """Raise NotFinite where one is not. dtype: of the run, which decides what to try."""
    if not torch.isfinite(numbers).all():
        way_out = f"; {WIDER[dtype]}" if dtype in WIDER else ""
        raise NotFinite(f"NaN or infinite {what} in window {window.index} (tokens from {window.start}){way_out}")


@torch.inference_mode()
def log_probabilities(logits: Float[Tensor, "scored vocabulary"]) -> Float[Tensor, "scored vocabulary"]:
    """In place, in float32."""
    for rows in logits.split(ROWS):
        rows.copy_(rows.log_softmax(dim=-1))
    return logits


@torch.inference_mode()
def score(
    log_q: Float[Tensor, "scored vocabulary"],
    log_p: Float[Tensor, "scored vocabulary"],
    targets: Int64[Tensor, "scored"],
) -> Scores:
    """Scores of log q against the exact log p.

    KL as `kl_terms` has it: nothing cancels in float32, nothing overflows.
    """
    targets = targets.to(log_q.device)
    kl, top1 = [], []
    for q, p in zip(log_q.split(ROWS), log_p.split(ROWS), strict=True):
        kl.append(kl_terms(q - p, p.exp(), lambda far, q=q: q[far].exp()).sum(dim=-1))
        top1.append(q.argmax(dim=-1) == p.argmax(dim=-1))
    nll = -log_q.gather(1, targets[:, None])[:, 0]
    return Scores(nll.cpu(), torch.cat(kl).cpu(), torch.cat(top1).cpu())
