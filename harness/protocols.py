"""The passes of an evaluation: prefill once, then score the suffix over a cache.

Every protocol scores the same `score_length − 1` tokens of a window; losses are in nats.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.caches.layers import WholeSlidingLayer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.recorded import Recorded
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.kinds import sliding_windows

Protocol = Literal["two-pass", "stepwise", "single-pass"]


@torch.inference_mode()
def prefill(model: Any, prefix: Int64[Tensor, "batch prefix"], *, whole: bool = False) -> DynamicCache:
    """Pass 1: the prefix in one exact forward; its keys and values. It does not depend on the scheme.

    whole: layers with a sliding window have those of all tokens too, for schemes that store them (layers=all)."""
    return prefilled_with_logits(model, prefix, whole=whole)[0]


@torch.inference_mode()
def prefilled_with_logits(
    model: Any, prefix: Int64[Tensor, "batch prefix"], *, whole: bool = False
) -> tuple[DynamicCache, Float[Tensor, "batch vocabulary"]]:
    """As `prefill`, and the logits that predict the token after the prefix, exact for every scheme."""
    cache = DynamicCache(config=model.config)
    for index, window in sliding_windows(cache, model.config).items() if whole else ():
        cache.layers[index] = WholeSlidingLayer(window)
    return cache, fill_live(model, prefix, cache)


@torch.inference_mode()
def fill_live(model: Any, prefix: Int64[Tensor, "batch prefix"], cache: Any) -> Float[Tensor, "batch vocabulary"]:
    """Pass 1 straight into a cache. One row of logits, that of the next token: the language-model head is not needed for others."""
    return forward(model, prefix, cache, logits_to_keep=1).logits[:, -1]


@torch.inference_mode()
def suffix_logits(
    model: Any,
    cache: Any,
    suffix: Int64[Tensor, "batch suffix"],
    step: int | None = None,
    recorded: Recorded | None = None,
) -> Float[Tensor, "batch scored vocabulary"]:
    """Pass 2 over a filled cache: the logits, in the model's dtype, that predict suffix tokens 1, 2, …

    step: tokens per forward; None is the whole suffix in one. A SchemeCache stores nothing in the last forward, and is used
    up by several. recorded: the forwards of its steps, where they are replayed.
    """
    chunks = suffix.split(step or suffix.shape[1], dim=1)
    logits, done = torch.empty(0), 0
    fed = cache.feed(chunks, recorded and recorded.buffers) if isinstance(cache, SchemeCache) else chunks
    for chunk in fed:
        if recorded and recorded.takes(cache):
            some = recorded.forward(cache, chunk)
        else:
            some = forward(model, chunk, cache).logits
        if not done:
            logits = some if len(chunks) == 1 else some.new_empty((*suffix.shape, some.shape[2]))
        if len(chunks) > 1:
            logits[:, done : done + chunk.shape[1]] = some
        done += chunk.shape[1]
    return logits[:, :-1]


@torch.inference_mode()
def single_pass_logits(
    model: Any, cache: Any, tokens: Int64[Tensor, "batch window"], suffix_length: int
) -> Float[Tensor, "batch scored vocabulary"]:
    """The whole window in one forward, which writes the cache and does not read it."""
    return forward(model, tokens, cache, logits_to_keep=suffix_length).logits[:, :-1]
