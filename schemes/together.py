"""Stores of many layers packed in one call: a quantizer that encodes batch rows independently takes layers as rows too."""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from kvdelta.schemes.store import TokenStore

AT_ONCE = {"cpu": 2**20, "cuda": 2**28}
"""Numbers that are encoded or decoded in one call, by device, where there are more layers: few launches on a GPU, temporaries that
stay in the caches of a CPU."""


def pack_together(stores: Iterable[TokenStore]) -> None:
    """Quantize what waits in the stores: of those that are alike many in one call."""
    waiting = [(store, store.waiting) for store in stores if store.waiting is not None]
    for places in alike(waiting):
        few = at_once(waiting[places[0]][1])
        for i in range(0, len(places), few):
            _pack([waiting[place] for place in places[i : i + few]])


def at_once(x: Tensor) -> int:
    """How many layers with a tensor like this go together."""
    return max(1, AT_ONCE.get(x.device.type, AT_ONCE["cpu"]) // max(1, x.numel()))


def alike(stores: Sequence[tuple[TokenStore, Tensor]]) -> list[list[int]]:
    """Which may be packed in one call, as positions: those with equal rules and equally many tokens packed, and with a
    tensor of the same shape, the one beside each."""
    kinds: dict[Hashable, list[int]] = {}
    for i, (store, like) in enumerate(stores):
        quantizer = store.scheme.quantizer
        alone = id(store) if quantizer.rows_independent is not True or quantizer.needs_place else 0
        held = (store.dropped, store.packed_until)
        kinds.setdefault((alone, store.scheme, like.shape, like.dtype, like.device, held), []).append(i)
    return list(kinds.values())


def _pack(waiting: Sequence[tuple[TokenStore, Tensor]]) -> None:
    first, block = waiting[0]
    if len(waiting) == 1:
        first.pack()
        return
    for packed in first.quantized(torch.cat([one for _, one in waiting])):
        for i, (store, _) in enumerate(waiting):
            own = slice(i * len(block), (i + 1) * len(block))
            store.keep_packed(packed.map_parts(lambda part, own=own: part[own]))
