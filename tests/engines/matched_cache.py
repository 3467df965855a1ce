"""A cache that does what llama.cpp does with keys and values, in transformers and with this project's own block codec.

llama.cpp quantizes on write: a forward writes the keys and values of its own tokens first, and attention reads all of them
back, those of the prompt while it is processed and the newest token's among them. So nothing is ever read exactly, and how the
tokens are cut into forwards changes nothing but rounding. A SchemeCache differs in both: a forward's own tokens are exact,
and an evaluation's prefill is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kvdelta.harness.subject.attention import attend_shared
from kvdelta.schemes import parse_scheme

States = Float[Tensor, "batch heads tokens channels"]
RoundTrip = Callable[[States], States]

NAME = "sdpa-matched"


def round_trip(type: str, side: str, rotated: bool, paired: bool = False) -> RoundTrip:
    """What is read back of keys or values (side: "key" or "value") that were written as a ggml type. f32: as they are.

    paired: the two channels that RoPE turns together lie side by side when they are stored, where transformers has them half
    a head apart. So a block of 32 channels has others in it, and the rotation mixes others."""
    if type == "f32":
        return lambda x: x
    if type == "f16":
        return lambda x: x.half().to(x.dtype)
    quantizer = parse_scheme(f"llama.cpp:type={type}" if rotated else type).sides[side].quantizer
    if paired:
        return lambda x: in_halves(quantizer.quantize(in_pairs(x)).dequantize())
    return lambda x: quantizer.quantize(x).dequantize()


def in_pairs(x: States) -> States:
    """From transformers' order of a head's channels to that of GGUF files of Llama models."""
    return x.unflatten(-1, (2, -1)).mT.flatten(-2)


def in_halves(x: States) -> States:
    """And back."""
    return x.unflatten(-1, (-1, 2)).mT.flatten(-2)


class MatchedLayer(DynamicLayer):
    """Keys and values decoded again as soon as they are written; `update` returns nothing else. own: those of the newest
    forward as they came."""

    def __init__(self, key: RoundTrip, value: RoundTrip, jitter: float = 0):
        super().__init__()
        self.key, self.value, self.jitter = key, value, jitter
        self.own: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: States, value_states: States, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.own = key_states, value_states
        if self.jitter:
            key_states, value_states = (x * (1 + self.jitter * torch.randn_like(x)) for x in self.own)
        return super().update(self.key(key_states), self.value(value_states), *args, **kwargs)


class MatchedCache(DynamicCache):
    """key, value: ggml types (f32, f16, q8_0, q4_0, …). rotated: as llama.cpp does by default with a quantized type. paired: of
    keys, as `round_trip`. jitter: relative, normal, of each number before it is written.

    ValueError: a layer of the model that is no full attention.
    """

    def __init__(self, config: Any, key: str, value: str, *, rotated: bool, paired: bool = False, jitter: float = 0):
        super().__init__(config=config)
        others = [type(layer).__name__ for layer in self.layers if type(layer) is not DynamicLayer]
        if others:
            raise ValueError(f"a matched cache is of full attention only; the model has {others[0]}")
        sides = round_trip(key, "key", rotated, paired), round_trip(value, "value", rotated)
        self.layers = [MatchedLayer(*sides, jitter) for _ in self.layers]

    def written(self, prefilled: DynamicCache) -> "MatchedCache":
        """With the keys and values of an exact prefill written into it: its damage is left out. Returns itself."""
        for index, layer in enumerate(prefilled.layers):
            self.update(layer.keys, layer.values, index)
        return self


@contextmanager
def _attention(model: Any, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def quantized_queries(model: Any, rotated: bool, paired: bool = False) -> Any:
    """While it lasts, queries meet keys as q8_0, in their order and rotated as they are: ggml's product of a quantized key on
    a CPU."""
    to_q8_0 = round_trip("q8_0", "key", rotated, paired)

    def attend(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return attend_shared(module, to_q8_0(query), *args, **kwargs)

    return _attention(model, attend)


def exact_own_token(model: Any, cache: MatchedCache) -> Any:
    """While it lasts, each token of a forward over `cache` meets its own key and value as they came, and all others decoded:
    what decoding token by token does with a SchemeCache that packs each token by itself, in one forward."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        own = cache.layers[module.layer_idx].own
        assert own is not None
        sharing, tokens = query.shape[1] // key.shape[1], query.shape[2]
        keys, values, own_key, own_value = (x.repeat_interleave(sharing, dim=1) for x in (key, value, *own))
        past = keys.shape[2] - tokens
        scores = query @ keys.mT
        scores.diagonal(past, -2, -1).copy_((query * own_key).sum(-1))
        later = torch.ones(tokens, keys.shape[2], dtype=torch.bool).triu(past + 1)
        p = (scores * kwargs["scaling"]).masked_fill_(later, -torch.inf).softmax(dim=-1)
        output = p @ values + p.diagonal(past, -2, -1)[..., None] * (own_value - values[:, :, past:])
        return output.transpose(1, 2).contiguous(), None

    return _attention(model, attend)
