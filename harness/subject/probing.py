"""What a model does with its cache, seen by running it on a few tokens: configs do not say it, or say it wrongly."""

import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.harness.subject.kinds import layers_of_kind
from kvdelta.schemes import LayerKinds
from kvdelta.schemes.errors import UserError

TOKENS, SPLIT = 8, 5  # of a probe; where it is cut in two


@dataclass(frozen=True)
class KVShape:
    """What one layer caches of a token: KV heads, and channels of a head's key and of its value. window: the tokens that it
    attends to, where these are not all."""

    heads: int
    key_channels: int
    value_channels: int
    window: int | None = None


_SHAPES: WeakKeyDictionary[Any, tuple[dict[int, KVShape], str]] = WeakKeyDictionary()


def kv_shapes(model: Any, kinds: LayerKinds = "full") -> dict[int, KVShape]:
    """By layer, of the layers that keep the keys and values of every token and nothing else, or of those that do so of a sliding
    window, or both: what they hold after a tiny prefill. UserError where there are none."""
    if model not in _SHAPES:
        _, cache = probe(model, tokens_for(model))
        shapes: dict[int, KVShape] = {}
        for index, window in layers_of_kind("all", cache, model.config).items():
            keys, values = cache.layers[index].keys, cache.layers[index].values
            if keys is not None and values is not None:
                shapes[index] = KVShape(keys.shape[1], keys.shape[3], values.shape[3], window)
        held = ", ".join(sorted({type(layer).__name__ for layer in cache.layers}))
        _SHAPES[model] = (shapes, held)
    shapes, held = _SHAPES[model]
    found = {i: one for i, one in shapes.items() if kinds == "all" or (one.window is None) == (kinds == "full")}
    if not found:
        what = {"full": "of all tokens", "sliding": "of a sliding window", "all": "of its tokens"}[kinds]
        raise UserError(
            f"this {model.config.model_type} model has no layer that keeps the keys and values {what} and nothing "
            f"else; its cache layers: {held}"
        )
    return found


def tokens_for(model: Any) -> Tensor:
    """A few different tokens, [1, TOKENS]; the first ids are left out, since padding is often among them."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return (torch.arange(TOKENS)[None] + 3) % vocabulary


@torch.inference_mode()
def probe(model: Any, tokens: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """One forward over an empty cache: float32 logits [tokens, vocabulary], and the cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    logits = forward(model, tokens, cache, logits_to_keep=tokens.shape[1], **options).logits
    return logits[0].float(), cache


def why_unusable(model: Any) -> str | None:
    """Why a loaded causal language model cannot be evaluated with a KV cache; None where it can."""
    none = "keeps a recurrent state or nothing at all, not the keys and values of its tokens"
    if cache_keyword(model) is None:
        return none
    tokens = tokens_for(model)
    try:
        logits, cache = probe(model, tokens)
    except Exception as error:  # a model with a cache class of its own raises what it likes over another
        return f"does not run over transformers' own cache ({one_line(error)})"
    if not any(isinstance(getattr(layer, "keys", None), Tensor) for layer in cache.layers):
        return none
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    if differ(probe(model, changed)[0][:-1], logits[:-1], model.dtype):
        return "is an encoder: its tokens see what follows"
    return None


@torch.inference_mode()
def continues(model: Any) -> bool:
    """Whether a forward of several tokens over a filled cache goes on where the cache ends: some recurrent layers take up
    their state for one token only, and start afresh for more."""
    tokens = tokens_for(model)
    whole, _ = probe(model, tokens)
    _, cache = probe(model, tokens[:, :SPLIT])
    return not differ(forward(model, tokens[:, SPLIT:], cache).logits[0].float(), whole[SPLIT:], model.dtype)


def check_continues(model: Any) -> None:
    """ValueError where a suffix in one forward would score another model."""
    if not continues(model):
        raise UserError(
            f"this {model.config.model_type} model does not go on from its recurrent state when a forward has more than "
            "one token, so a suffix in one forward would be scored wrongly; kvdelta compare --protocol stepwise --step 1 "
            "scores it"
        )


@torch.inference_mode()
def places_are_in_keys(model: Any) -> bool:
    """Whether a key carries its position (rotary, or from the embedding), so that a cache may hold keys in any order and
    leave some out; where attention is biased by distance (ALiBi), it counts the keys that it is given."""
    tokens = tokens_for(model)
    _, cache = probe(model, tokens[:, :SPLIT])
    straight = forward(model, tokens[:, SPLIT:], copy.deepcopy(cache)).logits[0].float()
    for layer in kv_shapes(model):
        held = cache.layers[layer]
        held.keys, held.values = held.keys.flip(2), held.values.flip(2)
    return not differ(forward(model, tokens[:, SPLIT:], cache).logits[0].float(), straight, model.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """How far outputs that should be equal may differ, relative, by the round-off of a whole model in `dtype`."""
    return {torch.float16: 5e-2, torch.bfloat16: 2e-1}.get(dtype, 1e-3)


def differ(x: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether they differ by more than the round-off of a model in `dtype`; not where they are not finite, which is
    another defect."""
    return float((x - expected).norm()) > tolerance(dtype) * float(expected.norm())
