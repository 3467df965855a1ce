"""Did the scored forward read the stored cache? Counted while it happens, at the cache's own `update`."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvdelta.harness.caches.heads import Gather, any_head, own
from kvdelta.schemes.errors import UserError


@dataclass
class Reads:
    """Attended (query, token) pairs of scored queries: all, and those whose key, or value, came from packed storage."""

    pairs: int = 0
    key: int = 0
    value: int = 0

    @property
    def key_coverage(self) -> float:
        return self.key / self.pairs if self.pairs else 0.0

    @property
    def value_coverage(self) -> float:
        return self.value / self.pairs if self.pairs else 0.0

    def add(self, other: "Reads") -> None:
        self.pairs += other.pairs
        self.key += other.key
        self.value += other.value


@dataclass
class Observer:
    """Watches a cache's `update` from `watch()` on, and counts what each of `layers` reads.

    layers: those that the cache stores, or of a cache that is not ours those with full attention; what a sliding layer drops is
    the model's own doing, and a pair is one of a query and a token in its window.
    declared: the cache is ours, and each of these layers says in `past_read()` which positions the next forward reads from
    packed storage, or not at all. Of any other cache a pair counts as read from storage when the row that `update`
    returned is missing or not bit-equal to the row written ("by value").
    Such a cache goes window by window; of a batch the counts are those of each of its windows.
    scored: how many of the suffix's queries are scored; later ones do not count. skipped: queries before these. gather: over the
    processes that share the model's heads; a pair counts whose row is another in any head.
    """

    cache: Any
    scored: int
    layers: Collection[int]
    declared: bool
    skipped: int = 0
    gather: Gather = own
    reads: dict[int, Reads] = field(default_factory=dict)
    _written: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _queries: dict[int, int] = field(default_factory=dict)
    _scoring: bool = False
    _promised: int | None = None  # tokens that the mask of this forward is for

    def __post_init__(self) -> None:
        self._update = self.cache.update
        self.cache.update = self._watched
        if self.declared:
            self.cache.replayed = self._replayed
        else:
            self._mask_sizes: Any = getattr(self.cache, "get_mask_sizes", None)
            self.cache.get_mask_sizes = self._asked

    def watch(self) -> None:
        """From here on forwards are scored; before, they only write."""
        self._scoring = True

    def stop(self) -> "Observer":
        del self.cache.update  # the wrapper was an attribute of this object over the class's method
        if self.declared:
            del self.cache.replayed
        else:
            del self.cache.get_mask_sizes
        self._written.clear()
        return self

    def _watched(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            return self._update(keys, values, layer, *args, **kwargs)
        if self.declared:
            if self._scoring:
                self._count(layer, self.cache.layers[layer], keys.shape[2])
            return self._update(keys, values, layer, *args, **kwargs)
        written = self._written.setdefault(layer, [])
        past = sum(key.shape[2] for key, _ in written)
        written.append((keys.detach().clone(), values.detach().clone()))  # a cache may change what it was given
        promised = {self._promised, self._own_promise(keys.shape[2], layer)}
        returned = self._update(keys, values, layer, *args, **kwargs)
        check_count(returned, promised - {None}, layer)
        if self._scoring:
            lost = [lost_rows(torch.cat([pair[side] for pair in written], dim=2), returned[side]) for side in (0, 1)]
            self._count_rows(layer, past, keys.shape[2], any_head(lost, self.gather))
        return returned

    def _asked(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The model asks before a forward, of one layer for all that are alike."""
        sizes = self._mask_sizes(*args, **kwargs)
        if (kwargs["layer_idx"] if "layer_idx" in kwargs else args[1]) in self.layers:
            self._promised = int(sizes[0])
        return sizes

    def _own_promise(self, queries: int, layer: int) -> int | None:
        """What this layer says for itself: caches may keep another number of tokens in each, and one query has no mask."""
        try:
            return int(self._mask_sizes(queries, layer)[0])
        except Exception:  # of other transformers, or none
            return None

    def _replayed(self, queries: int) -> None:
        """A recorded forward read what each layer says it reads."""
        for layer in self.layers if self._scoring else ():
            self._count(layer, self.cache.layers[layer], queries)

    def _rows(self, layer: int, queries: int) -> range:
        """Which of this forward's queries are scored."""
        before = self._queries.get(layer, 0)
        self._queries[layer] = before + queries
        first, last = self.skipped - before, self.skipped + self.scored - before
        return range(min(queries, max(0, first)), max(0, min(queries, last)))

    def _count(self, layer: int, held: Any, queries: int) -> None:
        past, rows, read = held.get_seq_length(), self._rows(layer, queries), held.past_read()
        if not (window := getattr(held, "sliding_window", None)):
            counted = Reads(_pairs(past, rows), len(rows) * len(read["key"]), len(rows) * len(read["value"]))
        else:
            counted = Reads()
            for end in range(past + rows.start + 1, past + rows.stop + 1):  # behind each query
                seen = range(max(0, end - window), end)
                counted.add(Reads(len(seen), common(seen, read["key"]), common(seen, read["value"])))
        self.reads.setdefault(layer, Reads()).add(counted)

    def _count_rows(self, layer: int, past: int, queries: int, lost: list[Tensor]) -> None:
        rows = self._rows(layer, queries)
        # query i attends to tokens up to past + i
        key, value = (int(side.cumsum(0)[past + rows.start : past + rows.stop].sum()) for side in lost)
        self.reads.setdefault(layer, Reads()).add(Reads(_pairs(past, rows), key, value))


def check_count(returned: tuple[Tensor, Tensor], promised: Collection[int | None], layer: int) -> None:
    """UserError where keys and values are of other numbers of tokens than each other, or than the mask was made for. Attention
    without a mask, as of one new token, would take them as they are."""
    keys, values = (x.shape[2] for x in returned)
    if keys != values:
        raise UserError(f"update of layer {layer} returned {keys} keys and {values} values: equally many are owed")
    if promised and keys not in promised:
        said = " or ".join(map(str, sorted(one for one in promised if one is not None)))
        raise UserError(
            f"update of layer {layer} returned {keys} tokens, and get_mask_sizes said {said}: what is attended would not be "
            "what the mask is for"
        )


def declaring_layers(cache: Any) -> list[int]:
    """The layers of a cache of ours that say what they read: those that are not kept as they come."""
    return [index for index, layer in enumerate(cache.layers) if hasattr(layer, "past_read")]


def _pairs(past: int, rows: range) -> int:
    """Those of some queries of a forward: each attends to what is before it, and to itself."""
    return len(rows) * past + sum(row + 1 for row in rows)


def common(a: range, b: range) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def total(reads: Iterable[Reads]) -> Reads:
    sums = Reads()
    for one in reads:
        sums.add(one)
    return sums


def lost_rows(written: Tensor, returned: Tensor) -> Tensor:
    """For each written token (dim 2): 1 where its row was not returned bit for bit.

    Where as many rows came back as were written they pair by position, else (eviction) by their bytes, the newest
    first: of a token that recurs, no more copies count as returned than were.
    """
    if returned.shape == written.shape and returned.dtype == written.dtype:
        return (written != returned.to(written.device)).any(dim=3).any(dim=1).any(dim=0).long().cpu()
    rows, back = (_row_bytes(x.to(written.dtype)) for x in (written, returned))
    left, lost = Counter(back), []
    for row in reversed(rows):
        lost.append(left[row] == 0)
        left[row] -= left[row] > 0
    return torch.tensor(lost[::-1], dtype=torch.long)


def _row_bytes(x: Tensor) -> list[bytes]:
    flat = x.detach().cpu().transpose(0, 2).flatten(1).contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in flat]
