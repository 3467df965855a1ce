"""SchemeCache: one transformers cache for every scheme, for evaluation and for `model.generate` alike."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from harness.caches.rotary import rotary_of
from harness.caches.stepping import Buffers, Steps
from schemes import Rotary, Scheme, TokenStore
from schemes.errors import UserError
from schemes.together import pack_together

Whole = Float[Tensor, "batch heads past_and_new _"]  # past and new tokens; values may be narrower than keys
New = Float[Tensor, "batch heads tokens _"]


TokensT = TypeVar("TokensT", bound=Tensor)

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
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stores.values()
        many = key_states.shape[2] > STEP  # tokens: a prefill holds no exact copy of more than one layer
        return keys.read_with(key_states, pack=many), values.read_with(value_states, pack=many)

    def past_read(self) -> dict[str, int]:
        """By side, how many of the past tokens the next forward reads from packed storage."""
        return {side: store.packed_tokens for side, store in self.stores.items()}

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


class SchemeCache(DynamicCache):
    """A transformers cache that stores full-attention layers as `scheme` says and leaves other layers as they are.

    Pass it as `cache` (before transformers 5.24 `past_key_values`) to `model(...)` or `model.generate(...)`. With
    left padding, the keys of pad tokens enter per-channel groups like any other.

    rotary: of a layer, for schemes that store keys as they were before it; `for_model` takes the model's own. mirrored: each
    block is decoded once and stays decoded beside its codes, so that a step costs its own tokens: the speed of an exact
    cache, and its memory on top.

    Raises ValueError where the model has no full-attention layer to quantize; the first `update` where its heads are such
    that the scheme cannot group them.
    """

    def __init__(
        self, scheme: Scheme, config: Any, rotary: Callable[[int], Rotary] | None = None, *, mirrored: bool = False
    ):
        super().__init__(config=config)
        stored = full_layers(self)
        if not stored:
            kinds = ", ".join(sorted({type(layer).__name__ for layer in self.layers})) or "none"
            raise UserError(
                f"the model ({config.model_type}) has no full-attention layer whose cache could be quantized; its cache "
                f"layers: {kinds}"
            )
        self.scheme = scheme.bind(len(self.layers), stored, rotary)
        for index in stored:
            self.layers[index] = SchemeLayer(self.scheme.for_layer(index), mirrored)
        self._last = stored[-1]

    def update(
        self, key_states: New, value_states: New, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Whole, Whole]:
        """As `SchemeLayer`; after the last layer, what waits in all of them is quantized, those alike in one call."""
        read = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._last:
            pack_together(store for _, _, store in self.stores())
        return read

    @classmethod
    def for_model(cls, scheme: Scheme, model: Any, *, mirrored: bool = False) -> "SchemeCache":
        """A cache for a model, with whatever the scheme needs of it (its rotary module, where keys are stored as they
        were before the rotation)."""
        return cls(scheme, model.config, lambda layer: rotary_of(model, layer), mirrored=mirrored)

    @property
    def lossy_layers(self) -> dict[str, list[int]]:
        """By side, the layers that do not keep it exactly."""
        return {
            side: [i for i in self.quantized_layers if side in self.scheme.for_layer(i).quantized_sides]
            for side in self.scheme.sides
        }

    @property
    def quantized_layers(self) -> list[int]:
        """Indices of the layers that are stored as the scheme says."""
        return [index for index, layer in enumerate(self.layers) if isinstance(layer, SchemeLayer)]

    def stores(self) -> Iterator[tuple[int, str, TokenStore]]:
        """(layer, "key" or "value", store) of every quantized layer."""
        for index in self.quantized_layers:
            layer = self.layers[index]
            assert isinstance(layer, SchemeLayer)
            for side, store in layer.stores.items():
                yield index, side, store

    def fill(self, prefilled: DynamicCache) -> "SchemeCache":
        """Store what an exact prefill captured, as a live prefill would, many layers in one call. Returns itself."""
        stores: list[TokenStore] = []
        for index, layer in enumerate(prefilled.layers):
            mine = self.layers[index]
            if not isinstance(mine, SchemeLayer):
                self.layers[index] = copy.deepcopy(layer)  # sliding, linear: state is changed in place by forwards
                continue
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            if self.scheme.lossless:  # nothing to pack: as it comes
                self.update(layer.keys, layer.values, index)
                continue
            if not mine.is_initialized:
                mine.lazy_initialization(layer.keys, layer.values)
            for store, x in zip(mine.stores.values(), (layer.keys, layer.values), strict=True):
                store.admit(x)
                stores.append(store)
        pack_together(stores)
        return self

    def feed(self, chunks: Sequence[TokensT], buffers: Buffers | None = None) -> Iterator[TokensT]:
        """The chunks of a suffix [batch, tokens], one after another, for a caller that makes a forward over this cache with
        each: what is stored is decoded once, many layers in one call. The last forward, after which nobody reads, stores
        nothing; several chunks use the cache up, whose layers become those of `Steps`."""
        stored = {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, SchemeLayer)}
        room = self.get_seq_length() + sum(chunk.shape[1] for chunk in chunks)
        steps = Steps(
            {index: layer.stores for index, layer in stored.items()},
            {index: layer.emptied() for index, layer in stored.items()},
            room,
            buffers or Buffers(),
            once=len(chunks) == 1,
        )
        for index, layer in steps.layers.items():
            self.layers[index] = layer
        try:
            for i, chunk in enumerate(chunks):
                yield chunk
                steps.advance(chunk.shape[1], keep=i < len(chunks) - 1)
        finally:
            if len(chunks) == 1:
                for index, layer in stored.items():
                    self.layers[index] = layer

    def replayed(self, queries: int) -> None:
        """Called where a recorded forward (`harness.recorded`) of so many tokens took the place of `update` in every layer:
        for whoever watches."""

    def zero_codes(self) -> None:
        """The destructive control: set every stored code to 0."""
        for _, _, store in self.stores():
            store.zero_codes()


def full_layers(cache: DynamicCache) -> list[int]:
    """The layers of an exact cache that keep all keys and values: those that a scheme stores."""
    # exactly DynamicLayer: its subclasses (sliding, indexed) keep other things
    return [index for index, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]
