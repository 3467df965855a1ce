"""The layers of a SchemeCache: keys and values of one layer in packed storage, and what transformers asks of such a layer."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from kvdelta.schemes import Scheme, TokenStore
from kvdelta.schemes.errors import UserError

Whole = Float[Tensor, "batch heads past_and_new _"]  # past and new tokens; values may be narrower than keys
New = Float[Tensor, "batch heads tokens _"]

STEP = 16  # tokens of a forward, at most, that wait for the last layer to be quantized


class SchemeLayer(CacheLayerMixin):
    """One full-attention layer whose keys and values are stored as `scheme` says.

    `update` returns the stored past, decoded, followed by the new tokens as they came; then the new tokens are
    stored. So a forward attends to its own tokens exactly and only later forwards read what was quantized. What a
    step of few tokens has to quantize waits for `SchemeCache.update` of the last layer.
    """

    is_croppable = True
    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, scheme: Scheme, mirrored: bool = False):
        super().__init__()
        self.scheme = scheme
        self.stores = {side: TokenStore(rule, mirrored) for side, rule in scheme.sides.items()}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.scheme.check(key_states.shape[3], value_states.shape[3])  # configs do not say how wide cached heads are
        self.dtype, self.device = key_states.dtype, key_states.device
        # transformers asks for tensors here; the state is in the stores. Not slices, which would keep the whole prefix
        self.keys, self.values = (x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Whole, Whole]:
        return self._read_with(key_states, value_states)

    def _read_with(self, key_states: New, value_states: New) -> tuple[Tensor, Tensor]:
        """All that is held of keys and of values, decoded, and the new behind them, which are then stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stores.values()
        many = key_states.shape[2] > STEP  # tokens: a prefill holds no exact copy of more than one layer
        return keys.read_with(key_states, pack=many), values.read_with(value_states, pack=many)

    @property
    def past_tokens(self) -> int:
        """How many of the tokens before it the next one attends to."""
        return self.get_seq_length()

    def past_read(self) -> dict[str, range]:
        """By side, the positions that the next forward reads from packed storage."""
        return {side: range(store.packed_from, store.packed_until) for side, store in self.stores.items()}

    def get_seq_length(self) -> int:
        return self.stores["key"].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        for store in self.stores.values():
            store.reset()
        self.keys = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: Any) -> None:
        """Remove the newest −`tokens_to_remove` tokens (a negative number, as transformers passes it)."""
        tokens_to_remove = int(tokens_to_remove)  # a number; transformers 5.17 passes a tensor
        if tokens_to_remove > 0:
            raise UserError(
                f"crop({tokens_to_remove}): pass a negative number, the tokens to remove; a length to keep is no longer "
                "understood by transformers either"
            )
        for store in self.stores.values():
            store.crop(max(0, store.length + tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        for store in self.stores.values():
            store.index_select(indices)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices], self.values[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        for store in self.stores.values():
            store.repeat(repeats)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (x.repeat_interleave(repeats, dim=0) for x in (self.keys, self.values))

    def emptied(self) -> dict[str, Tensor]:
        """By side, a tensor like those of its tokens, with none."""
        assert self.keys is not None
        assert self.values is not None
        return {"key": self.keys, "value": self.values}

    def of_rows(self, rows: Int64[Tensor, "rows"]) -> "SchemeLayer":
        other = copy.copy(self)
        other.stores = {
            side: copy.copy(store) for side, store in self.stores.items()
        }  # whose parts are replaced, not changed
        other.batch_select_indices(rows)
        return other

    def offload(self) -> None:
        for store in self.stores.values():
            store.to("cpu")

    def prefetch(self) -> None:
        if self.is_initialized:
            for store in self.stores.values():
                store.to(self.device)


class SlidingSchemeLayer(SchemeLayer):
    """The same for a layer that attends to the newest `sliding_window` tokens, the query's own among them.

    `update` returns no more of the past than such a query sees. What the window has left is let go: exact tokens, and token
    groups that hold none but such, up to an eighth of a window at a time. There is no mirror of decoded tokens.
    """

    is_sliding = True

    def __init__(self, scheme: Scheme, sliding_window: int):
        super().__init__(scheme)
        self.sliding_window = sliding_window
        self.record_past = False

    def activate_past_recording(self) -> None:
        """Keep what the window leaves until `crop` is called, as assisted generation asks before it takes tokens back."""
        self.record_past = True

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Whole, Whole]:
        keys, values = self._read_with(key_states, value_states)
        visible = self.sliding_window - 1 + key_states.shape[2]
        if not self.record_past:
            self.forget(slack=self.sliding_window // 8)
        return keys[:, :, -visible:], values[:, :, -visible:]

    def forget(self, slack: int = 0) -> None:
        """Let go of what the window has left, where that is more than `slack` tokens."""
        left = self.get_seq_length() - (self.sliding_window - 1)
        for store in self.stores.values():
            if left - store.dropped > slack:
                store.forget(left)

    @property
    def past_tokens(self) -> int:
        return min(self.get_seq_length(), self.sliding_window - 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.past_tokens + query_length, self.get_seq_length() - self.past_tokens

    def get_max_length(self) -> int:
        return self.sliding_window

    def crop(self, tokens_to_remove: Any) -> None:
        if self.get_seq_length() >= self.sliding_window and not self.record_past:
            raise UserError(
                f"crop({int(tokens_to_remove)}): a sliding window has let go of the tokens that would come back into it; call "
                "activate_past_recording() on the cache before"
            )
        super().crop(tokens_to_remove)
        self.forget()


class WholeSlidingLayer(DynamicSlidingWindowLayer):
    """transformers' own layer, exact, of a prefill: `whole` has the keys and values of every token, since groups of tokens begin
    where the text does, not where its last window does. A copy of it is without them."""

    whole: tuple[Whole, Whole] | None = None

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Whole, Whole]:
        keys, values = self.whole or (key_states[:, :, :0], value_states[:, :, :0])
        self.whole = (torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2))
        return super().update(key_states, value_states, *args, **kwargs)

    def of_rows(self, rows: Int64[Tensor, "rows"]) -> "WholeSlidingLayer":
        some = copy.copy(self)
        assert self.keys is not None
        assert self.values is not None
        some.keys, some.values = self.keys[rows], self.values[rows]
        if self.whole is not None:
            some.whole = (self.whole[0][rows], self.whole[1][rows])
        return some

    def __deepcopy__(self, memo: Any) -> DynamicSlidingWindowLayer:
        plain = DynamicSlidingWindowLayer(self.sliding_window)
        vars(plain).update({name: copy.deepcopy(held, memo) for name, held in vars(self).items() if name != "whole"})
        return plain


def whole(layer: Any) -> tuple[Whole, Whole]:
    """The keys and values of every token of an exact prefill's layer."""
    if isinstance(layer, WholeSlidingLayer):
        assert layer.whole is not None
        return layer.whole
    assert layer.keys is not None
    if layer.get_seq_length() > layer.keys.shape[2]:
        raise UserError(
            "this prefill kept only the last window of its sliding layers; kvdelta.harness.protocols.prefill(model, prefix, whole=True) "
            "keeps what a scheme with layers=all is filled from"
        )
    return layer.keys, layer.values
