"""SchemeCache: one transformers cache for every scheme, for evaluation and for `model.generate` alike."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.caches.key_bias import key_bias_of
from kvdelta.harness.caches.layers import New, SchemeLayer, SlidingSchemeLayer, Together, Whole, is_step, whole
from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.caches.stepping import Buffers, Steps
from kvdelta.harness.subject.kinds import stored_layers
from kvdelta.schemes import Rotary, Scheme, TokenStore
from kvdelta.schemes.together import pack_together

TokensT = TypeVar("TokensT", bound=Tensor)


class SchemeCache(DynamicCache):
    """A transformers cache that stores layers as `scheme` says, those with full attention unless it says others, and leaves the
    rest as they are.

    Pass it as `cache` (before transformers 5.24 `past_key_values`) to `model(...)` or `model.generate(...)`. With
    left padding, the keys of pad tokens enter per-channel groups like any other.

    rotary, key_bias: of a layer, for schemes that work with what keys were before the rotary embedding; `for_model` takes the
    model's own. mirrored: from the first forward of few tokens on what is stored stays decoded beside its codes, so that a step costs
    its own tokens: the speed of an exact cache, and its memory on top. Layers step together then (`Together`), and whatever changes
    what is held (crop, rows, copies of a layer, a long forward), or asks for the stores, parts them until the next step, which
    decodes all again. Not of layers with a sliding window, which are decoded at every step.

    Raises ValueError where the model has no such layer to quantize; the first `update` where its heads are such that the
    scheme cannot group them.
    """

    def __init__(
        self,
        scheme: Scheme,
        config: Any,
        rotary: Callable[[int], Rotary] | None = None,
        *,
        key_bias: Callable[[int], Tensor | None] | None = None,
        mirrored: bool = False,
    ):
        super().__init__(config=config)
        stored = stored_layers(scheme, self, config)
        self.scheme = scheme.bind(len(self.layers), stored, rotary, key_bias)
        for index, window in stored.items():
            here = self.scheme.for_layer(index)
            self.layers[index] = SchemeLayer(here) if window is None else SlidingSchemeLayer(here, window)
        self._mirrored = mirrored
        self._last = max(stored)

    def update(
        self, key_states: New, value_states: New, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Whole, Whole]:
        """As `SchemeLayer`; after the last layer, what waits in all of them is quantized, those alike in one call."""
        if self._mirrored:
            self._step_together(layer_idx, key_states)
        read = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._last:
            mine = (layer for layer in self.layers if isinstance(layer, SchemeLayer))
            pack_together(store for layer in mine for store in layer.waiting())
        return read

    def _step_together(self, layer_idx: int, new: New) -> None:
        """If `new` are few and the layer is by itself, all that are so and hold as many tokens on the same device go on together."""
        layer = self.layers[layer_idx]
        if type(layer) is not SchemeLayer or not is_step(new) or not (length := layer.get_seq_length()):
            return
        if layer.together is None or not layer.together.goes_on(layer, new):
            single = [one for one in self.layers if type(one) is SchemeLayer and one.together is None]
            pack_together(store for one in single for store in one.waiting())
            alike = [one for one in single if one.get_seq_length() == length]
            Together([one for one in alike if one.emptied()["key"].device == new.device], new.shape[2])

    @classmethod
    def for_model(cls, scheme: Scheme, model: Any, *, mirrored: bool = False) -> "SchemeCache":
        """A cache for a model, with whatever the scheme needs of it (its rotary module, where keys are stored as they
        were before the rotation; the bias of its key projections)."""
        return cls(
            scheme,
            model.config,
            lambda layer: rotary_of(model, layer),
            key_bias=lambda layer: key_bias_of(model, layer),
            mirrored=mirrored,
        )

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

    def layer(self, index: int) -> SchemeLayer:
        """One of `quantized_layers`."""
        layer = self.layers[index]
        assert isinstance(layer, SchemeLayer)
        return layer

    def stores(self) -> Iterator[tuple[int, str, TokenStore]]:
        """(layer, "key" or "value", store) of every quantized layer."""
        for index in self.quantized_layers:
            for side, store in self.layer(index).stores.items():
                yield index, side, store

    def fill(self, prefilled: DynamicCache) -> "SchemeCache":
        """Store what an exact prefill captured, as a live prefill would, many layers in one call. Returns itself."""
        stores: list[TokenStore] = []
        for index, layer in enumerate(prefilled.layers):
            mine = self.layers[index]
            if not isinstance(mine, SchemeLayer):
                self.layers[index] = copy.deepcopy(layer)  # sliding, linear: state is changed in place by forwards
                continue
            keys, values = whole(layer)
            if self.scheme.lossless:  # nothing to pack: as it comes
                self.update(keys, values, index)
                continue
            if not mine.is_initialized:
                mine.lazy_initialization(keys, values)
            for store, x in zip(mine.stores.values(), (keys, values), strict=True):
                store.admit(x)
                stores.append(store)
        pack_together(stores)
        for index in self.quantized_layers:
            if isinstance(mine := self.layers[index], SlidingSchemeLayer):
                mine.forget()
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
            {index: layer.sliding_window for index, layer in stored.items() if isinstance(layer, SlidingSchemeLayer)},
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
