"""Which layers of a transformers cache keep every token, and which a sliding window of them."""

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvdelta.schemes import Scheme
from kvdelta.schemes.errors import UserError


def full_layers(cache: DynamicCache) -> list[int]:
    """The layers of an exact cache that keep all keys and values."""
    # exactly DynamicLayer: its subclasses (sliding, indexed) keep other things
    return [index for index, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]


def sliding_windows(cache: DynamicCache, config: Any) -> dict[int, int]:
    """By layer that attends to a sliding window: its tokens, the query's own among them. Chunked layers, which are stored alike
    and masked otherwise, are none."""
    decoder = config.get_text_config(decoder=True)
    kinds = getattr(decoder, "layer_types", None)
    if kinds is None and getattr(decoder, "sliding_window", None) is None:
        return {}
    return {
        index: layer.sliding_window
        for index, layer in enumerate(cache.layers)
        if type(layer) is DynamicSlidingWindowLayer and not (kinds and kinds[index] == "chunked_attention")
    }


def stored_layers(scheme: Scheme, cache: DynamicCache, config: Any) -> dict[int, int | None]:
    """The layers of an exact cache that a scheme stores, in order: the window of each, None for all tokens. UserError where
    there are none; what is lossless may then store the others."""
    found = layers_of_kind(scheme.kinds, cache, config)
    others = found or layers_of_kind("all", cache, config)
    if found or (scheme.lossless and others):
        return found or others
    model = f"the model ({config.model_type})"
    if scheme.kinds == "sliding" and others:
        raise UserError(f"scheme {scheme.name}: {model} has no layer with a sliding window; leave layers=sliding out")
    if others:
        raise UserError(
            f"scheme {scheme.name}: {model} has no full-attention layer whose cache could be quantized, only {len(others)} with a "
            "sliding window: layers=all quantizes those"
        )
    kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers})) or "none"
    raise UserError(f"{model} has no full-attention layer whose cache could be quantized; its cache layers: {kinds}")


def layers_of_kind(kinds: str, cache: DynamicCache, config: Any) -> dict[int, int | None]:
    """The layers of an exact cache that `kinds` (full, sliding, all) names, in order: the window of each, None for all tokens."""
    full: dict[int, int | None] = dict.fromkeys(full_layers(cache)) if kinds != "sliding" else {}
    return dict(sorted((full | (sliding_windows(cache, config) if kinds != "full" else {})).items()))
