"""Keys and values into a cache without a model, and what it gives back for them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.harness.conformance.models import LLAMA, LONGEST, full
from kvdelta.harness.conformance.outcome import Factory, Wrong

Held = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows heads tokens channels]."""

LAYERS, HEADS, CHANNELS = LLAMA["num_hidden_layers"], LLAMA["num_key_value_heads"], LLAMA["head_dim"]
ROWS = (0, 1)
FORWARDS = (0, 192, 193, 196, 320, 321)
"""Where forwards end: a prefill, steps of 1 and of 3, one that fills a residual window of 128, and 1 again."""
FIRST, MORE = FORWARDS[3:5]


@functools.cache
def _stream() -> Float[Tensor, "layers side rows heads tokens channels"]:
    shape = (LAYERS, 2, 4, HEADS, LONGEST, CHANNELS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def stream(start: int, stop: int, rows: Sequence[int] = ROWS, dtype: torch.dtype = torch.float32) -> Held:
    """What is put into a cache: the tokens from start to stop of some of four texts."""
    chosen = _stream()[:, :, list(rows), :, start:stop].to(dtype)
    return [(keys, values) for keys, values in chosen]


@dataclass(frozen=True)
class Returned:
    """Of one forward: what `update` of each layer gave back, and (kv_length, kv_offset) that was said before it."""

    held: Held
    masks: list[tuple[int, int]]

    def tokens(self, start: int, stop: int) -> Held:
        """Those at the positions from start to stop that it gives back, where the mask takes them to be."""
        cut: Held = []
        for (keys, values), (_, offset) in zip(self.held, self.masks, strict=True):
            places = slice(max(0, start - offset), max(0, stop - offset))
            cut.append((keys[:, :, places], values[:, :, places]))
        return cut


def put(cache: Any, new: Held) -> Returned:
    """One forward's keys and values into every layer. What comes back is copied: some caches go on writing into it."""
    held: Held = []
    masks: list[tuple[int, int]] = []
    for layer, (keys, values) in enumerate(new):
        length, offset = cache.get_mask_sizes(keys.shape[2], layer)
        masks.append((int(length), int(offset)))
        read_keys, read_values = cache.update(keys, values, layer)
        held.append((read_keys.clone(), read_values.clone()))
    return Returned(held, masks)


def feed(cache: Any, start: int, stop: int, rows: Sequence[int] = ROWS) -> Returned:
    """One forward with the tokens from start to stop of the stream."""
    return put(cache, stream(start, stop, rows))


def fill(cache: Any, rows: Sequence[int] = ROWS) -> Any:
    """FIRST tokens into an empty cache, which is returned."""
    for start, stop in pairwise(FORWARDS[:4]):
        feed(cache, start, stop, rows)
    return cache


def filled(factory: Factory, rows: Sequence[int] = ROWS) -> Any:
    """A fresh cache of FIRST tokens."""
    return fill(factory(full().config), rows)


def read(cache: Any, rows: int = len(ROWS)) -> Returned:
    """What a cache holds: read, and so used up, by one more step."""
    return put(cache, stream(LONGEST - 1, LONGEST, [3] * rows))


def past(cache: Any, rows: int = len(ROWS), tokens: int = FIRST) -> Held:
    """What a cache of so many tokens holds of them, which uses it up."""
    return read(cache, rows).tokens(0, tokens)


def of_rows(held: Held, rows: Sequence[int]) -> Held:
    return [(keys[list(rows)], values[list(rows)]) for keys, values in held]


def lengths(cache: Any) -> list[int]:
    """As each layer says."""
    return [int(cache.get_seq_length(layer)) for layer in range(LAYERS)]


def has_length(cache: Any, tokens: int | list[int], when: str) -> None:
    """tokens: of all layers, or of each."""
    wanted = [tokens] * LAYERS if isinstance(tokens, int) else tokens
    if (found := lengths(cache)) != wanted:
        layer = next(layer for layer in range(LAYERS) if found[layer] != wanted[layer])
        raise Wrong(f"length {when}: expected {wanted[layer]}, got {found[layer]} (layer {layer})")


def has_grown(cache: Any, before: list[int], tokens: int, when: str) -> None:
    """Against what it said before: what it says wrong all the time fails where lengths themselves are checked."""
    has_length(cache, [length + tokens for length in before], when)
