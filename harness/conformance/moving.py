"""What happens to a cache between forwards: rows change places, it is copied, it is moved to another device."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kvdelta.harness.caches.holdings import layers_of, tensors
from kvdelta.harness.conformance.comparing import is_exact, keeps
from kvdelta.harness.conformance.feeding import FIRST, MORE, feed, filled, has_grown, has_length, lengths, of_rows, past
from kvdelta.harness.conformance.models import full
from kvdelta.harness.conformance.outcome import Check, DoesNotApply, Factory, Wrong


def _moves_rows(factory: Factory, move: Callable[[Any], None], rows: Sequence[int], what: str) -> None:
    """After `move` it has these rows of what it had, and goes on with them."""
    exact, before = is_exact(factory), past(filled(factory))
    cache, goes_on = filled(factory), filled(factory)
    said = lengths(cache)
    move(cache)
    has_grown(cache, said, 0, f"after {what}")
    keeps(past(cache, len(rows)), of_rows(before, rows), exact, f"rows after {what}")
    move(goes_on)
    of_these = filled(factory, rows)
    for one in (goes_on, of_these):
        feed(one, FIRST, MORE, rows)  # a residual window is full: what it holds is packed, or packed again
    wanted = past(of_these, len(rows), MORE)
    keeps(past(goes_on, len(rows), MORE), wanted, exact, f"{MORE - FIRST} tokens after {what}")


def _reorder(factory: Factory) -> str:
    for steps in ([[1, 0]], [[1, 0], [1, 1]]):
        rows = [0, 1]
        for step in steps:
            rows = [rows[index] for index in step]

        def move(cache: Any, steps: list[list[int]] = steps) -> None:
            for step in steps:
                cache.reorder_cache(torch.tensor(step))

        _moves_rows(factory, move, rows, " and ".join(f"reorder_cache({step})" for step in steps))
    return ""


def _batch(factory: Factory) -> str:
    _moves_rows(
        factory, lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1], "batch_repeat_interleave(2) of 2 rows"
    )
    _moves_rows(factory, lambda cache: cache.batch_select_indices(torch.tensor([1])), [1], "batch_select_indices([1])")
    return ""


def _deepcopy(factory: Factory) -> str:
    exact, before = is_exact(factory), past(filled(factory))
    cache = filled(factory)
    copied = copy.deepcopy(cache)
    said = lengths(copied)
    has_length(factory(full().config), 0, "of another cache of the same factory")
    feed(cache, FIRST, MORE, (2, 3))
    has_grown(copied, said, 0, "of a copy while the original goes on")
    keeps(past(copied), before, exact, "a copy while the original goes on")
    has_grown(cache, said, MORE - FIRST, "of the original while a copy goes on")
    return ""


def _offload(factory: Factory) -> str:
    exact, before = is_exact(factory), past(filled(factory))
    cache = filled(factory)
    layers = layers_of(cache)
    if not layers:
        raise DoesNotApply("it has no layers, which transformers would move one by one")
    for layer in layers:
        layer.offload()
        if left := _elsewhere(layer, "cpu"):
            raise Wrong(f"offload: expected all of a layer on the CPU, got {left} bytes elsewhere")
        layer.prefetch()
    keeps(past(cache), before, exact, "contents after offload and prefetch")
    moved = layers_of(filled(factory))[0]
    if not hasattr(moved, "device"):
        raise DoesNotApply("its layers know no device that they would be fetched to")
    moved.device = torch.device("meta")  # pretended, since there may be one device here
    moved.prefetch()
    if left := _elsewhere(moved, "meta"):
        raise Wrong(f"prefetch: expected all of a layer on its device, got {left} bytes left where they were")
    return ""


def _elsewhere(layer: Any, device: str) -> int:
    """Bytes of a layer that are not on a device; single numbers, such as a length, may stay anywhere."""
    held = tensors(layer, skipped=set())
    return sum(one.numel() * one.element_size() for one in held if one.numel() > 1 and one.device.type != device)


REORDER = Check(
    "reorder", "reorder_cache gives each row what the row had that it is to follow", _reorder, may_refuse=True
)
BATCH = Check(
    "batch operations",
    "batch_repeat_interleave and batch_select_indices move all that a row has",
    _batch,
    may_refuse=True,
)
DEEPCOPY = Check(
    "deepcopy", "a copy, and another cache of the same factory, share nothing with it", _deepcopy, may_refuse=True
)
OFFLOAD = Check(
    "offload",
    "offload and prefetch of its layers move all that they hold, and change nothing",
    _offload,
    may_refuse=True,
)
