"""The bias of a model's key projections, where they have one: what it contributes to a key is known from the position alone."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.subject.probing import differ, kv_shapes, probe, tokens_for
from kvdelta.schemes.errors import UserError

Bias = Float[Tensor, "heads channels"]

_BIASES: WeakKeyDictionary[Any, dict[int, Bias | None]] = WeakKeyDictionary()


def key_bias_of(model: Any, layer: int) -> Bias | None:
    """Of a layer that caches keys; None where its `k_proj` has none. UserError where it has no `k_proj`, or where its keys are not
    that projection rotated, which is seen by running a few tokens: a norm comes between, say."""
    if model not in _BIASES:
        _BIASES[model] = _biases(model)
    if layer not in _BIASES[model]:
        raise UserError(
            f"layer {layer} of this {model.config.model_type} model has no key projection whose bias reaches the cache as it is, "
            "so it cannot be taken away; leave unbiased(…) out"
        )
    return _BIASES[model][layer]


@torch.inference_mode()
def _biases(model: Any) -> dict[int, Bias | None]:
    shapes = kv_shapes(model, "all")
    projections = {
        layer: module
        for layer in shapes
        for name, module in model.get_decoder().named_modules()
        if name.endswith(f".{layer}.self_attn.k_proj") or name == f"{layer}.self_attn.k_proj"
        if isinstance(module, nn.Linear)
    }
    found: dict[int, Bias | None] = {layer: None for layer, module in projections.items() if module.bias is None}
    biased = {layer: module for layer, module in projections.items() if module.bias is not None}
    if not biased:
        return found
    projected: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, given, returned, layer=layer: projected.update({layer: returned}))
        for layer, module in biased.items()
    ]
    try:
        _, cache = probe(model, tokens_for(model))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, module in biased.items():
        heads, channels = shapes[layer].heads, shapes[layer].key_channels
        keys = rotary_of(model, layer).unrotate(cache.layers[layer].keys.float(), 0)
        before = projected[layer].float().unflatten(-1, (heads, channels)).transpose(1, 2)
        if not differ(keys, before, model.dtype):  # else a norm, or a clamp, comes between
            bias = module.bias.data
            part = bias.to_local() if isinstance(bias, DTensor) else bias  # of the heads that this process has
            found[layer] = part.unflatten(0, (heads, channels))
    return found
