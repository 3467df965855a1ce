"""A filled cache as forwards of few tokens step over it: one side of all layers that are stored alike is one store and one buffer.

A step then costs its own tokens: they are written behind the decoded ones, and what must be packed is encoded and decoded
for all layers in one call, once the forward is over.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvdelta.schemes import KV, TokenStore
from kvdelta.schemes.together import alike, at_once

Buffer = Float[Tensor, "layers batch heads room channels"]
Held = Float[Tensor, "batch heads room _"]  # values may be narrower than keys
New = Float[Tensor, "batch heads tokens _"]


class Buffers:
    """The decoded tokens of every layer, at addresses that stay the same from scheme to scheme: a recorded forward
    (`harness.recorded`) goes on reading and writing there."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def of(self, side: str, layers: int, like: Tensor, room: int) -> Buffer:
        """For `layers` layers of tokens like `like`, with room for so many."""
        batch, heads, _, channels = like.shape
        key = (side, layers, batch, heads, room, channels, like.dtype, like.device)
        if key not in self._held:
            self._held[key] = like.new_empty(layers, batch, heads, room, channels)
        return self._held[key]


class StepLayer(CacheLayerMixin):
    """One layer's keys and values [batch, heads, room, channels], decoded; the first `length` tokens are there."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, keys: Held, values: Held, length: int, packed: Mapping[str, TokenStore]):
        super().__init__()
        self.keys, self.values, self.length, self.packed = keys, values, length, packed
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it is made of a filled layer."""

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new tokens behind those that are there; all, as views. `Steps.advance` stores the new ones."""
        end = self.length + key_states.shape[2]
        assert self.keys is not None
        assert self.values is not None
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[:, :, self.length : end] = new
        return self.keys[:, :, :end], self.values[:, :, :end]

    def past_read(self) -> dict[str, range]:
        """By side, the positions that the next forward reads from packed storage."""
        return {side: range(store.packed_from, store.packed_until) for side, store in self.packed.items()}

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlidingStepLayer(StepLayer):
    """One that attends to the newest `sliding_window` tokens, the query's own among them."""

    is_sliding = True

    def __init__(self, keys: Held, values: Held, length: int, packed: Mapping[str, TokenStore], sliding_window: int):
        super().__init__(keys, values, length, packed)
        self.sliding_window = sliding_window

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        visible, _ = self.get_mask_sizes(key_states.shape[2])
        keys, values = super().update(key_states, value_states)
        return keys[:, :, -visible:], values[:, :, -visible:]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        past = min(self.length, self.sliding_window - 1)
        return past + query_length, self.length - past

    def get_max_length(self) -> int:
        return self.sliding_window


class _Decoded:
    """The part of a buffer that some layers have, which their common store fills."""

    def __init__(self, buffer: Buffer, places: Sequence[int]):
        self.buffer, self.places = buffer, list(places)
        # neighbouring layers, as nearly always, are a slice, which costs no copy
        first, last = self.places[0], self.places[-1]
        self.run = slice(first, last + 1) if self.places == list(range(first, last + 1)) else None

    def read(self, stores: Sequence[TokenStore]) -> None:
        """All tokens of the stores, which are those of its layers, many in one call."""
        few = at_once(self.buffer[0])
        for i in range(0, len(stores), few):
            some = stores[i : i + few]
            past = (some[0] if len(some) == 1 else TokenStore.joined(some)).read()
            assert past is not None
            _Decoded(self.buffer, self.places[i : i + few]).decode(some[0].dropped, past)

    def decode(self, start: int, decoded: KV) -> None:
        by_layer = decoded.unflatten(0, (len(self.places), -1))
        part = (slice(None), slice(None), slice(start, start + decoded.shape[2]))
        if self.run:
            self.buffer[self.run, *part] = by_layer
            return
        for place, one in zip(self.places, by_layer, strict=True):
            self.buffer[place, *part] = one

    def tokens(self, start: int, stop: int) -> KV:
        return self.buffer[self.run or self.places, :, :, start:stop].flatten(0, 1)

    @property
    def nbytes(self) -> int:
        return self.buffer[0].numel() * self.buffer.element_size() * len(self.places)


class _Stack(NamedTuple):
    """One side of some layers."""

    side: str
    layers: list[int]
    store: TokenStore
    decoded: _Decoded


class Steps:
    """Takes over the stores of layers, by index those of each side, which are empty then, and the shape of their tokens; windows:
    tokens that a sliding layer attends to; room: tokens of the whole window. once: there is one forward, which reads them and leaves
    them as they are.

    While a store takes over those of one side, what they hold is there twice.
    """

    def __init__(
        self,
        stores: Mapping[int, Mapping[str, TokenStore]],
        like: Mapping[int, Mapping[str, Tensor]],
        windows: Mapping[int, int],
        room: int,
        buffers: Buffers,
        once: bool = False,
    ):
        self._stacks: list[_Stack] = []
        views: dict[int, dict[str, Tensor]] = {index: {} for index in stores}
        packed: dict[int, dict[str, TokenStore]] = {index: {} for index in stores}
        self.length = next(store.length for sides in stores.values() for store in sides.values())
        for side in ("key", "value"):
            by_shape: dict[Hashable, list[int]] = {}
            for index in stores:
                by_shape.setdefault(like[index][side].shape, []).append(index)
            for indices in by_shape.values():
                buffer = buffers.of(side, len(indices), like[indices[0]][side], room)
                for place, index in enumerate(indices):
                    views[index][side] = buffer[place]
                for places in alike([(stores[index][side], like[index][side]) for index in indices]):
                    mirror = _Decoded(buffer, places)
                    mine = [stores[indices[place]][side] for place in places]
                    mirror.read(mine)
                    store = mine[0] if once else TokenStore.joined(mine, mirror.decode)
                    for one in () if once else mine:
                        one.reset()
                    self._stacks.append(_Stack(side, [indices[place] for place in places], store, mirror))
                    for index in self._stacks[-1].layers:
                        packed[index][side] = store
        self.layers: dict[int, StepLayer] = {}
        for index, sides in views.items():
            own = (sides["key"], sides["value"], self.length, packed[index])
            self.layers[index] = SlidingStepLayer(*own, windows[index]) if index in windows else StepLayer(*own)

    def advance(self, count: int, keep: bool) -> None:
        """A forward of `count` tokens is over. keep: they are stored, for the next to read."""
        if not keep:
            return
        for stack in self._stacks:
            stack.store.append(stack.decoded.tokens(self.length, self.length + count))
        self.length += count
        for layer in self.layers.values():
            layer.length = self.length

    def parted(self) -> dict[int, dict[str, TokenStore]]:
        """The stores of each layer, each with storage of its own again. Uses itself up."""
        stores: dict[int, dict[str, TokenStore]] = {index: {} for index in self.layers}
        self.layers.clear()
        while self._stacks:
            stack = self._stacks.pop()
            for index, own in zip(stack.layers, stack.store.parted(len(stack.layers)), strict=True):
                stores[index][stack.side] = own
        return {index: {side: sides[side] for side in ("key", "value")} for index, sides in stores.items()}
