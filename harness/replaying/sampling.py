"""The exact model writes: one token a step over transformers' own cache, all prompts of a batch together."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.records.replay import Sampling
from kvdelta.harness.replaying.options import ReplayOptions
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.windows import Batch

Pick = Callable[[Float[Tensor, "batch vocabulary"], int], Int64[Tensor, "batch"]]
"""Next tokens from logits, at a step."""


def sampling_of(how: ReplayOptions, model: Any) -> Sampling:
    """As asked for; else as the model's generation config samples; else from the model's distribution as it is."""
    if how.greedy:
        return Sampling(temperature=None)
    config = getattr(model, "generation_config", None)
    own = config is not None and getattr(config, "do_sample", None) is True
    temperature, top_p, top_k = (
        (getattr(config, name, None) if own else None) for name in ("temperature", "top_p", "top_k")
    )
    if how.temperature is not None or how.top_p is not None:
        temperature, top_p, top_k = how.temperature, how.top_p, None
    return Sampling(temperature=float(temperature or 1.0), top_p=float(top_p or 1.0), top_k=top_k or None)


def probabilities(logits: Float[Tensor, "batch vocabulary"], how: Sampling) -> Float[Tensor, "batch vocabulary"]:
    """That the next token is drawn from; not normalised again after a cut."""
    assert how.temperature is not None
    p = (logits.float() / how.temperature).softmax(-1)
    if how.top_k and how.top_k < p.shape[-1]:
        p = p.where(p >= p.topk(how.top_k).values[:, -1:], 0.0)
    if how.top_p < 1:
        ordered, places = (p / p.sum(-1, keepdim=True)).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= how.top_p  # what comes before it is enough
        p = p.masked_fill(beyond.scatter(1, places, beyond), 0.0)
    return p


def picker(how: Sampling, seed: int, prompts: Sequence[int]) -> Pick:
    """Chooses the next token of each prompt. What is random depends on seed, prompt and step alone, so a prompt's text does
    not depend on those beside it; and two models that predict alike choose alike (p/e is largest, e exponential)."""

    def pick(logits: Tensor, step: int) -> Tensor:
        if how.temperature is None:
            return logits.argmax(-1)
        p = probabilities(logits, how)
        noise = torch.stack([_exponential(p.shape[-1], seed, prompt, step) for prompt in prompts])
        return (p / noise.to(p.device)).argmax(-1)

    return pick


def _exponential(count: int, seed: int, prompt: int, step: int) -> Float[Tensor, "n"]:
    digest = hashlib.sha256(f"{seed} {prompt} {step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))  # on the CPU: the same on every device
    return torch.empty(count).exponential_(generator=generator)


@torch.inference_mode()
def written(model: Any, batch: Batch, count: int, pick: Pick) -> Int64[Tensor, "batch written"]:
    """What the exact model writes after the prefixes. Nothing stops it: past the end of its answer it goes on, so that all
    prompts have as many tokens."""
    cache = DynamicCache(config=model.config)
    first = pick(forward(model, batch.prefix, cache, logits_to_keep=1).logits[:, -1], 0)
    return carried_on(model, cache, first, count, pick)


@torch.inference_mode()
def carried_on(
    model: Any, cache: Any, first: Int64[Tensor, "batch"], count: int, pick: Pick
) -> Int64[Tensor, "batch written"]:
    """`first` and what follows it over a filled cache, `count` tokens in all."""
    tokens = [first]
    for step in range(1, count):
        tokens.append(pick(forward(model, tokens[-1][:, None], cache).logits[:, -1], step))
    return torch.stack(tokens, dim=1).cpu()
