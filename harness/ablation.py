"""Suffix passes that differ from the exact one from some layer on: the layers below are computed once, not again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import ModuleList
from transformers import DynamicCache

from kvdelta.harness.capture import exact_view
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.protocols import suffix_logits
from kvdelta.harness.subject.kinds import full_layers
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import KV

Logits = Float[Tensor, "windows scored vocabulary"]
KeysAndValues = tuple[KV, Float[Tensor, "batch heads tokens value_channels"]]


@dataclass(eq=False)
class SharedSuffix:
    """The suffixes of a batch of windows over an exact cache, and what each decoder layer returned in them."""

    model: Any
    batch: Batch
    prefilled: DynamicCache

    def __post_init__(self) -> None:
        self._layers = decoder_layers(self.model)
        self._returned: list[Any] = []
        hooks = [
            layer.register_forward_hook(lambda module, given, returned: self._returned.append(returned))
            for layer in self._layers
        ]
        try:
            self.exact: Logits = self.replaced({})
        finally:
            for hook in hooks:
                hook.remove()

    def held(self) -> dict[int, KeysAndValues]:
        """The exact prefix keys and values of every layer that keeps all."""
        layers: dict[int, Any] = {index: self.prefilled.layers[index] for index in full_layers(self.prefilled)}
        return {index: (layer.keys, layer.values) for index, layer in layers.items()}

    def replaced(self, layers: Mapping[int, KeysAndValues]) -> Logits:
        """Logits over other prefix keys and values in some layers, computed whole."""
        cache = exact_view(self.prefilled, self.model.config)
        for index, (keys, values) in layers.items():
            layer: Any = cache.layers[index]
            layer.keys, layer.values = keys, values
        return suffix_logits(self.model, cache, self.batch.suffix)

    def ablated(self, layer: int, other: KeysAndValues, share: bool = True) -> Logits:
        """Logits with other prefix keys and values in one layer, all others exact.

        share: take what the layers below returned in the exact pass, where it is the same bit for bit; False computes
        them again (to check just that).
        """
        with _returning(self._layers[: layer if share else 0], self._returned):
            return self.replaced({layer: other})

    def shares_exactly(self, layer: int, other: KeysAndValues) -> bool:
        """Whether taking the lower layers from the exact pass gives the same logits, bit for bit."""
        try:
            shared = self.ablated(layer, other)
        except Exception as error:
            if out_of_memory(error):
                raise
            return False  # a layer above reads what a skipped one would have left (Gemma 3n: its keys and values)
        return torch.equal(shared, self.ablated(layer, other, share=False))


def decoder_layers(model: Any) -> Sequence[Any]:
    """The decoder's layers in order, whatever the model calls them (layers, h, blocks): the outermost list of so many
    modules; none where there is no such list, and then every pass is computed whole."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (module for module in model.get_decoder().modules() if isinstance(module, ModuleList))
    return next((list(layers) for layers in lists if len(layers) == count), [])


@contextmanager
def _returning(layers: Sequence[Any], returned: Sequence[Any]) -> Iterator[None]:
    """These layers return what they returned before, without computing it."""
    for layer, value in zip(layers, returned, strict=False):
        layer.forward = lambda *args, _value=value, **kwargs: (
            _value
        )  # an attribute of the object over the class's method
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
