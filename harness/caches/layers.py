"""The layers of a SchemeCache: keys and values of one layer in packed storage, and what transformers asks of such a layer."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from kvdelta.harness.caches.stepping import Buffers, Steps
from kvdelta.schemes import Scheme, TokenStore
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.together import pack_together
from kvdelta.schemes.token_buffer import room, writable

Whole = Float[Tensor, "batch heads past_and_new _"]  # past and new tokens; values may be narrower than keys
New = Float[Tensor, "batch heads tokens _"]

STEP = 16  # tokens of a forward, at most, that wait for the last layer to be quantized
SPARE = 64  # tokens, at least, that layers that step together have room for when they begin


class SchemeLayer(CacheLayerMixin):
    """One full-attention layer whose keys and values are stored as `scheme` says.

    `update` returns the stored past, decoded, followed by the new tokens as they came; then the new tokens are
    stored. So a forward attends to its own tokens exactly and only later forwards read what was quantized. What a
    step of few tokens has to quantize waits for `SchemeCache.update` of the last layer, or while the layer steps together with
    others (`Together`) for the next forward.
    """

    is_croppable = True
    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, scheme: Scheme):
        super().__init__()
        self.scheme = scheme
        self.together: Together | None = None
        self.place = 0  # among those that it steps together with
        self._stores = {side: TokenStore(rule) for side, rule in scheme.sides.items()}

    @property
    def stores(self) -> dict[str, TokenStore]:
        """By side. To be asked for again after a forward: the layer no longer steps together with others, since what is done with
        its stores is done to it alone."""
        if self.together is not None:
            self.together.part()
        return self._stores

    def waiting(self) -> list[TokenStore]:
        """Its stores that have something to quantize."""
        return [store for store in self._stores.values() if store.waiting is not None]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.scheme.check(key_states.shape[3], value_states.shape[3])  # configs do not say how wide cached heads are
        self.dtype, self.device = key_states.dtype, key_states.device
        # transformers asks for tensors here; the state is in the stores. Not slices, which would keep the whole prefix
        self.keys, self.values = (x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Whole, Whole]:
        if self.together is not None and self.together.goes_on(self, key_states):
            return self.together.update(self, key_states, value_states)
        return self._read_with(key_states, value_states)

    def _read_with(self, key_states: New, value_states: New) -> tuple[Tensor, Tensor]:
        """All that is held of keys and of values, decoded, and the new behind them, which are then stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._stores.values()
        many = key_states.shape[2] > STEP  # tokens: a prefill holds no exact copy of more than one layer
        return keys.read_with(key_states, pack=many), values.read_with(value_states, pack=many)

    @property
    def past_tokens(self) -> int:
        """How many of the tokens before it the next one attends to."""
        return self.get_seq_length()

    def past_read(self) -> dict[str, range]:
        """By side, the positions that the next forward reads from packed storage; not to be asked while a forward goes on that is
        to attend to what this layer has returned."""
        if self.together is not None:
            self.together.settle()
        stores = self._stores if self.together is None else self.together.stores(self)
        return {side: range(store.packed_from, store.packed_until) for side, store in stores.items()}

    def get_seq_length(self) -> int:
        if self.together is not None:
            return self.together.length(self)
        return self._stores["key"].length

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

    def numbers(self, side: str) -> int:
        """Numbers of a side that the next token attends to; nothing is decoded. Of a sliding window, what is still held of groups
        that it left in part has a cost and no use."""
        batch, heads, _, channels = self.emptied()[side].shape
        return batch * heads * self.past_tokens * channels

    def of_rows(self, rows: Int64[Tensor, "rows"]) -> "SchemeLayer":
        stores = self.stores
        other = copy.copy(self)
        other._stores = {
            side: copy.copy(store) for side, store in stores.items()
        }  # whose parts are replaced, not changed
        other.batch_select_indices(rows)
        return other

    def offload(self) -> None:
        self._move("cpu")

    def prefetch(self) -> None:
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        for store in self.stores.values():
            store.to(device)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.to(device), self.values.to(device)


class Together:
    """Layers of a live cache that step together, from one that holds tokens on, until one of them changes by itself: stores of their
    own they have none, but share those of `Steps`, whose buffers hold all their tokens decoded, the memory that packing saves.

    A forward writes its tokens into the buffers. They are stored when the next one begins, so that what was returned stays as it
    is while it is read.
    """

    def __init__(self, layers: "Sequence[SchemeLayer]", new: int):
        """layers: with equally many tokens; there is room for `new` more, and some."""
        self._layers = list(layers)
        self._room = room(layers[0].get_seq_length() + max(new, SPARE))
        self._steps = Steps(
            {i: layer._stores for i, layer in enumerate(layers)},
            {i: layer.emptied() for i, layer in enumerate(layers)},
            {},
            self._room,
            Buffers(),
        )
        self._written = [0] * len(layers)  # tokens of the newest forward, by layer, which are not stored yet
        for place, layer in enumerate(layers):
            layer.together, layer.place = self, place

    def goes_on(self, layer: "SchemeLayer", new: New) -> bool:
        """Whether `new`, keys or values, can be this layer's next tokens. If not, all have parted: where it has had tokens that others
        still wait for, where they are many, or are to be differentiated, or where the buffer has no room or cannot be written to. It
        is not grown, but made again, so that there are never two."""
        if self._written[layer.place]:
            self.settle()
        if layer.together is None:
            return False
        fits = self._steps.length + new.shape[2] <= self._room and len(new) == len(layer.emptied()["key"])
        if fits and is_step(new) and self._writable and not self._written[layer.place]:
            return True
        self.part()
        return False

    def update(self, layer: "SchemeLayer", key_states: New, value_states: New) -> tuple[Whole, Whole]:
        """All tokens and the new behind them, as views."""
        self._written[layer.place] = key_states.shape[2]
        return self._steps.layers[layer.place].update(key_states, value_states)

    def length(self, layer: "SchemeLayer") -> int:
        return self._steps.length + self._written[layer.place]

    def stores(self, layer: "SchemeLayer") -> Mapping[str, TokenStore]:
        """By side, those that have the layer's tokens among others'."""
        return self._steps.layers[layer.place].packed

    @property
    def _writable(self) -> bool:
        keys = self._steps.layers[0].keys
        assert keys is not None
        return writable(keys)

    def settle(self) -> None:
        """Store what a forward has written, once it has written to all layers. Where this mode may not write to the buffers, they
        part."""
        count = self._written[0]
        if not count or any(one != count for one in self._written):
            return
        if not self._writable:
            self.part()
            return
        self._steps.advance(count, keep=True)
        self._written = [0] * len(self._layers)

    def part(self) -> None:
        """Each layer has stores of its own again, as if it had always had."""
        start, written = self._steps.length, []
        for place, count in enumerate(self._written):
            keys, values = self._steps.layers[place].keys, self._steps.layers[place].values
            assert keys is not None
            assert values is not None
            written.append([x[:, :, start : start + count].clone() for x in (keys, values) if count])
        stores = self._steps.parted()
        for layer, new in zip(self._layers, written, strict=True):
            layer.together, layer._stores = None, stores[layer.place]
            for store, x in zip(layer._stores.values(), new, strict=False):  # of none where nothing was written
                store.admit(x)
        pack_together(store for layer in self._layers for store in layer.waiting())


def is_step(new: New) -> bool:
    """Whether a forward of these keys or values is one of those that layers take together: of few tokens, and none that is to be
    differentiated, which reads what is written once."""
    return new.shape[2] <= STEP and not new.requires_grad


class SlidingSchemeLayer(SchemeLayer):
    """The same for a layer that attends to the newest `sliding_window` tokens, the query's own among them.

    `update` returns no more of the past than such a query sees. What the window has left is let go: exact tokens, and token
    groups that hold none but such, up to an eighth of a window at a time. It steps together with none.
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
