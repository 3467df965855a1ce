"""Did the scored forward read the stored cache? Counted while it happens, at the cache's own `update`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.caches.scheme import SchemeCache, SchemeLayer


@dataclass
class Reads:
    """Attended (query, token) pairs of scored queries, over quantized layers: all, and those whose key, or value,
    came from packed storage."""

    pairs: int = 0
    key: int = 0
    value: int = 0

    @property
    def key_coverage(self) -> float:
        return self.key / self.pairs if self.pairs else 0.0

    @property
    def value_coverage(self) -> float:
        return self.value / self.pairs if self.pairs else 0.0


@dataclass
class Observer:
    """Watches a cache's `update` from `watch()` on.

    SchemeCache tells how many tokens are packed. Of any other cache a pair counts as read from storage when the
    row that `update` returned is missing or not bit-equal to the row written ("by value").
    scored: how many of the suffix's queries are scored; later ones do not count.
    """

    cache: Any
    scored: int
    layers: dict[int, Reads] = field(default_factory=dict)
    _written: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _queries: dict[int, int] = field(default_factory=dict)
    _scoring: bool = False

    def __post_init__(self) -> None:
        self._update = self.cache.update
        self._declared = isinstance(self.cache, SchemeCache)
        self.cache.update = self._watched

    def watch(self) -> None:
        """From here on forwards are scored; before, they only write."""
        self._scoring = True

    def stop(self) -> "Observer":
        del self.cache.update  # the wrapper was an attribute of this object over the class's method
        self._written.clear()
        return self

    @property
    def total(self) -> Reads:
        sums = Reads()
        for reads in self.layers.values():
            sums.pairs += reads.pairs
            sums.key += reads.key
            sums.value += reads.value
        return sums

    def _watched(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._declared:
            held = self.cache.layers[layer]
            if isinstance(held, SchemeLayer) and self._scoring:
                packed = {side: store.packed_tokens for side, store in held.stores.items()}
                self._count(layer, held.get_seq_length(), keys.shape[2], packed)
            return self._update(keys, values, layer, *args, **kwargs)
        written = self._written.setdefault(layer, [])
        past = sum(key.shape[2] for key, _ in written)
        written.append((keys.detach().clone(), values.detach().clone()))  # a cache may change what it was given
        returned = self._update(keys, values, layer, *args, **kwargs)
        if self._scoring:
            lost = [lost_rows(torch.cat([pair[side] for pair in written], dim=2), returned[side]) for side in (0, 1)]
            self._count_rows(layer, past, keys.shape[2], lost)
        return returned

    def _rows(self, layer: int, queries: int) -> int:
        """How many of this forward's queries are scored."""
        before = self._queries.get(layer, 0)
        self._queries[layer] = before + queries
        return max(0, min(queries, self.scored - before))

    def _count(self, layer: int, past: int, queries: int, packed: dict[str, int]) -> None:
        rows = self._rows(layer, queries)
        reads = self.layers.setdefault(layer, Reads())
        reads.pairs += rows * past + rows * (rows + 1) // 2
        reads.key += rows * packed["key"]
        reads.value += rows * packed["value"]

    def _count_rows(self, layer: int, past: int, queries: int, lost: list[Tensor]) -> None:
        rows = self._rows(layer, queries)
        reads = self.layers.setdefault(layer, Reads())
        reads.pairs += rows * past + rows * (rows + 1) // 2
        # query i attends to tokens up to past + i
        reads.key += int(lost[0].cumsum(0)[past : past + rows].sum())
        reads.value += int(lost[1].cumsum(0)[past : past + rows].sum())


def lost_rows(written: Tensor, returned: Tensor) -> Tensor:
    """For each written token (dim 2): 1 where its row was not returned bit for bit.

    Where as many rows came back as were written they pair by position, else (eviction) by their bytes.
    """
    if returned.shape == written.shape and returned.dtype == written.dtype:
        return (written != returned.to(written.device)).any(dim=3).any(dim=1).any(dim=0).long().cpu()
    rows = [_row_bytes(x.to(written.dtype)) for x in (written, returned)]
    kept = set(rows[1])
    return torch.tensor([row not in kept for row in rows[0]], dtype=torch.long)


def _row_bytes(x: Tensor) -> list[bytes]:
    flat = x.detach().cpu().transpose(0, 2).flatten(1).contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in flat]
