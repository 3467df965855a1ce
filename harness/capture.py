"""What needs the model's inside: queries of a suffix forward, keys before rotation, gradients of the loss."""

import copy
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.protocols import suffix_logits
from kvdelta.harness.subject.attention import NAME, SHARED
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.imports import quiet
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import KV
from kvdelta.schemes.errors import UserError

CAPTURABLE = ("sdpa", "eager")
_NAME = "kvdelta-capture"

Logits = Float[Tensor, "windows scored vocabulary"]


@dataclass(frozen=True, eq=False)
class Attention:
    """One layer's attention in a suffix forward: queries [windows, query heads, suffix, channels], keys and values
    [windows, KV heads, prefix + suffix, channels] as attended, which keys each query may see, the module's own scaling and
    soft-cap, and what it returned [windows, suffix, query heads, channels]."""

    layer: int
    queries: Float[Tensor, "windows query_heads suffix channels"]
    keys: KV
    values: KV
    allowed: Bool[Tensor, "suffix tokens"]
    scaling: float
    softcap: float | None
    output: Float[Tensor, "windows suffix query_heads channels"]


def suffix_attention(
    model: Any, cache: Any, batch: Batch, layers: Collection[int], visit: Callable[[Attention], None]
) -> Logits:
    """The suffix in one forward over a filled cache, with a visit at each of `layers` while it goes; its logits.

    One layer's attention exists at a time. ValueError where the model's attention cannot be captured.
    """
    missed = set(layers)

    def visit_chosen(attention: Attention) -> None:
        if attention.layer in layers:
            missed.discard(attention.layer)
            visit(attention)

    with _capturing(model, visit_chosen):
        logits = suffix_logits(model, cache, batch.suffix)
    if missed:
        raise UserError(
            f"the attention of layers {sorted(missed)} of this {model.config.model_type} model does not go through "
            "transformers' attention interface, so its queries cannot be captured"
        )
    return logits


@contextmanager
def _capturing(model: Any, visit: Callable[[Attention], None]) -> Iterator[None]:
    original = model.config.get_text_config(decoder=True)._attn_implementation
    if original not in (*CAPTURABLE, NAME, SHARED):
        raise UserError(
            f"the attention implementation {original!r} cannot be captured; load the model with one of "
            f"{', '.join(CAPTURABLE)}"
        )

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        real = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)  # type: ignore[arg-type]
        returned = real(module, query, key, value, mask, **kwargs)
        scaling = kwargs.get("scaling")
        attention = Attention(
            layer=module.layer_idx,
            queries=query,
            keys=key,
            values=value,
            allowed=allowed_pairs(mask, query.shape[2], key.shape[2], query.device),
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=kwargs.get("softcap") if original == "eager" else None,  # sdpa does without, or raises (5.24)
            output=returned[0],
        )
        visit(attention)
        return returned

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS[original])  # else it attends to the wrong keys
    with quiet(progress_bars=True):  # a model that does not use the interface is refused by what is missed
        model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        with quiet(progress_bars=True):
            model.set_attn_implementation(original)
        AttentionInterface.register(_NAME, _none)  # lets go what `visit` holds, such as the gradients of a batch


def _none(*args: Any, **kwargs: Any) -> None:
    """Between captures there is no attention to call."""


def allowed_pairs(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """Which keys each query sees, in every window, from the mask that the attention function was given: none (causal, the
    queries last), boolean, or added to the logits. ValueError for a mask that is more than that."""
    if mask is None:
        return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask.shape[1] != 1:
        raise UserError(f"an attention mask of shape {tuple(mask.shape)} differs by head; it cannot be captured")
    if mask.stride(0) and not (mask == mask[:1]).all():
        raise UserError("an attention mask that differs by window cannot be captured")
    pairs = mask[0, 0, :, :keys]
    if pairs.dtype == torch.bool:
        return pairs
    visible = pairs == 0
    if not (visible | (pairs <= torch.finfo(pairs.dtype).min / 2)).all():
        raise UserError("an attention mask that adds other numbers than 0 and −∞ cannot be captured")
    return visible


def exact_view(prefilled: DynamicCache, config: Any) -> DynamicCache:
    """A cache that shares the prefilled keys and values; a forward over it leaves those of `prefilled` alone."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(prefilled.layers):
        # DynamicLayer appends by making new tensors; others (sliding, linear) change their state in place
        cache.layers[index] = copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer)
    return cache


def suffix_gradients(model: Any, batch: Batch, prefilled: DynamicCache) -> dict[int, dict[str, KV]]:
    """∂(Σ NLL of the exact suffix)/∂(prefix keys, values), by layer and side, of all windows in one backward pass.

    The gradients go through every later layer; nats per unit of the cached numbers, in the cache's dtype.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # else the activations that weights would need are kept too
    try:
        with torch.inference_mode(False), torch.enable_grad():
            cache = DynamicCache(config=model.config)
            leaves: dict[int, list[Tensor]] = {}
            for index, layer in enumerate(prefilled.layers):
                if type(layer) is not DynamicLayer:
                    cache.layers[index] = copy.deepcopy(layer)
                    continue
                leaf: Any = copy.copy(layer)
                leaf.keys, leaf.values = (x.clone().requires_grad_() for x in (leaf.keys, leaf.values))
                cache.layers[index], leaves[index] = leaf, [leaf.keys, leaf.values]
            logits = forward(model, batch.suffix.clone(), cache).logits[:, :-1]
            flat = [leaf for pair in leaves.values() for leaf in pair]
            gradients = torch.autograd.grad(logits, flat, _of_losses(logits.detach(), batch.targets))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return {index: {"key": gradients[2 * i], "value": gradients[2 * i + 1]} for i, index in enumerate(leaves)}


def _of_losses(logits: Logits, targets: Int64[Tensor, "windows scored"]) -> Logits:
    """∂(Σ NLL)/∂logits, a window at a time: of all at once the float32 copies would be the largest tensors of the pass."""
    gradient, targets = torch.empty_like(logits), targets.to(logits.device)
    for i, window in enumerate(logits):
        leaf = window.float().requires_grad_()
        loss = torch.nn.functional.cross_entropy(leaf, targets[i], reduction="sum")
        (gradient[i],) = torch.autograd.grad(loss, leaf)
    return gradient


@torch.inference_mode()
def pre_rope_keys(model: Any, layer: int, keys: KV) -> KV:
    """Keys as they were before the rotary embedding: rotated back by the model's own rotary module. Tokens are at
    positions 0, 1, …. ValueError where the model's rotation is not one that we can undo."""
    return rotary_of(model, layer).unrotate(keys.float(), 0)
