"""A model's own rotary embedding, forwards and backwards: keys as they were before it, and as they are cached."""

import inspect
import sys
from dataclasses import dataclass
from math import isfinite
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kvdelta.harness.subject.probing import kv_shapes, probe, tokens_for, tolerance
from kvdelta.schemes import KV, Rotary
from kvdelta.schemes.errors import UserError

SHIFT = 64  # positions; most pairs of channels turn visibly on the way
CLEARLY = 0.5  # of the distance of the other answer


@dataclass(frozen=True, eq=False)
class ModelRotary:
    """The rotary embedding of one layer, from the model's rotary module and its own function that applies it.

    Tokens are at positions start, start + 1, …: with left padding these are not the model's, but what is rotated back
    by them and forth again is the same. partial: only as many channels are rotated as the module gives angles; some
    models cut them out themselves before they call the function.
    """

    module: Any
    apply: Any
    with_queries: bool  # whether the function takes queries too
    words: dict[str, Any]
    partial: bool

    def rotate(self, keys: KV, start: int) -> KV:
        """In the dtype of `keys`, which should be float32."""
        return self._turned(keys, *self._angles(keys, start))

    def unrotate(self, keys: KV, start: int) -> KV:
        cos, sin = self._angles(keys, start)
        scale = cos.square() + sin.square()  # 1, or the square of a rotary module's own attention scaling
        return self._turned(keys, cos / scale, -sin / scale)

    def _angles(self, keys: Tensor, start: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + keys.shape[2], device=keys.device)[None]
        return self.module(keys, positions, **self.words)

    def _turned(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = cos.shape[-1] if self.partial else keys.shape[-1]
        turned, rest = keys[..., :width], keys[..., width:]
        turned = self.apply(turned, turned, cos, sin)[1] if self.with_queries else self.apply(turned, cos, sin)
        return torch.cat([turned, rest], dim=-1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelRotary":
        return self  # the model's own: a copied cache goes on with it


@dataclass(frozen=True)
class Unrotated:
    """Of a layer whose keys are cached as they were projected, in a model that rotates those of others."""

    def rotate(self, keys: KV, start: int) -> KV:
        return keys

    def unrotate(self, keys: KV, start: int) -> KV:
        return keys


_ROTARIES: WeakKeyDictionary[Any, dict[int, Rotary]] = WeakKeyDictionary()


def rotary_of(model: Any, layer: int) -> Rotary:
    """The rotary embedding of a layer that keeps keys and values, of all tokens or a window. UserError, before any whole forward, where the
    model's rotation is not one that we can undo, or where there is none."""
    if model not in _ROTARIES:
        _ROTARIES[model] = _rotaries(model)
    if layer not in _ROTARIES[model]:
        raise UserError(_cannot(model, layer))
    return _ROTARIES[model][layer]


def _cannot(model: Any, layer: int) -> str:
    return (
        f"layer {layer} of this {model.config.model_type} model caches keys whose rotation cannot be undone, so there are no "
        "pre-RoPE keys"
    )


def _rotaries(model: Any) -> dict[int, Rotary]:
    """For each layer, what makes its keys independent of the position.

    Attention over rotated keys depends on distances alone: a few tokens SHIFT positions later give the same keys,
    rotated further. So a rotation that is undone rightly gives the same keys twice.
    """
    what = f"this {model.config.model_type} model"
    decoder = model.get_decoder()
    module = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    if module is None or apply is None or "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{what} has no rotary module of the usual form, so there are no pre-RoPE keys")
    with_queries = "k" in inspect.signature(apply).parameters
    tokens = tokens_for(model)
    positions = torch.arange(tokens.shape[1], device=model.device)[None]
    here, later = (probe(model, tokens, position_ids=positions + start)[1] for start in (0, SHIFT))
    rotaries: dict[int, Rotary] = {}
    shapes = kv_shapes(model, "all")
    for layer, shape in shapes.items():
        if shape.window and shape.window <= tokens.shape[1]:  # it holds too few of them
            continue
        keys, shifted = here.layers[layer].keys.float(), later.layers[layer].keys.float()
        words = _words(model, module, layer)
        own = [ModelRotary(module, apply, with_queries, words, partial) for partial in (False, True)]
        candidates: list[Rotary] = [*own, Unrotated()]
        off = [_off(rotary, keys, shifted) for rotary in candidates]
        rotaries[layer] = candidates[off.index(min(off))]
        # deep layers in half precision carry the round-off of all below: what undoes the rotation is then known by
        # being far nearer than the other answer
        other = max(min(off[:-1]), off[-1])  # infinite where the module is of another form, which tells nothing
        far_nearer = isfinite(other) and min(off) <= CLEARLY * other
        if not (min(off) <= tolerance(model.dtype) or far_nearer):
            if shape.window is None:
                raise UserError(_cannot(model, layer))
            del rotaries[layer]
    full = [layer for layer, shape in shapes.items() if shape.window is None] or list(rotaries)
    if not any(isinstance(rotaries[layer], ModelRotary) for layer in full):
        raise UserError(f"{what} rotates no key that it caches, so there are no pre-RoPE keys")
    return rotaries


def _words(model: Any, module: Any, layer: int) -> dict[str, Any]:
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return {}
    return {"layer_type": model.config.get_text_config(decoder=True).layer_types[layer]}


@torch.inference_mode()
def _off(rotary: Rotary, keys: KV, shifted: KV) -> float:
    """How far the keys, rotated back, depend on the position, or do not come back when rotated again; relative."""
    try:
        back, back_shifted = rotary.unrotate(keys, 0), rotary.unrotate(shifted, SHIFT)
        again = rotary.rotate(back, 0)
    except Exception:  # a module or function of another form: it raises what it likes
        return torch.inf
    return float(max((back_shifted - back).norm(), (again - keys).norm()) / keys.norm())
