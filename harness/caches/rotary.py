"""A model's own rotary embedding, forwards and backwards: keys as they were before it, and as they are cached."""

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from schemes import KV
from schemes.errors import UserError


@dataclass(frozen=True, eq=False)
class ModelRotary:
    """The rotary embedding of one layer, from the model's rotary module and its own function that applies it.

    Tokens are at positions start, start + 1, …: with left padding these are not the model's, but what is rotated back
    by them and forth again is the same.
    """

    module: Any
    apply: Any
    words: dict[str, Any]

    def rotate(self, keys: KV, start: int) -> KV:
        """In the dtype of `keys`, which should be float32."""
        cos, sin = self._angles(keys, start)
        return self.apply(keys, keys, cos, sin)[1]

    def unrotate(self, keys: KV, start: int) -> KV:
        cos, sin = self._angles(keys, start)
        scale = cos.square() + sin.square()  # 1, or the square of a rotary module's own attention scaling
        return self.apply(keys, keys, cos / scale, -sin / scale)[1]

    def _angles(self, keys: Tensor, start: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + keys.shape[2], device=keys.device)[None]
        return self.module(keys, positions, **self.words)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelRotary":
        return self  # the model's own: a copied cache goes on with it


def rotary_of(model: Any, layer: int) -> ModelRotary:
    """ValueError where the model has no rotary module of the usual form."""
    decoder = model.get_decoder()
    module = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    if module is None or apply is None:
        raise UserError(
            f"this {model.config.model_type} model has no rotary module of the usual form, so there are no pre-RoPE keys"
        )
    words = {}
    if "layer_type" in inspect.signature(module.forward).parameters:
        words["layer_type"] = model.config.get_text_config(decoder=True).layer_types[layer]
    return ModelRotary(module, apply, words)


def check_rotary(rotary: ModelRotary, keys: KV, layer: int) -> None:
    """ValueError where keys, float32, do not come back when they are rotated back and forth."""
    again = rotary.rotate(rotary.unrotate(keys, 0), 0)
    if not torch.allclose(again, keys, rtol=1e-3, atol=1e-3 * float(keys.abs().max())):
        raise UserError(
            f"layer {layer} of this model: its keys do not come back when rotated back and forth, so there are no pre-RoPE "
            "keys"
        )
