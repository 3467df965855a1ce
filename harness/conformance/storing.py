"""What a cache says of itself and gives back: length, mask sizes, contents, dtype, crop, reset, the memory it holds."""

from itertools import pairwise
from typing import Any

import torch

from kvdelta.harness.caches.holdings import Opaque, storages
from kvdelta.harness.conformance.comparing import alike, has_past, is_exact, keeps, same
from kvdelta.harness.conformance.feeding import (
    FIRST,
    FORWARDS,
    ROWS,
    Held,
    feed,
    fill,
    filled,
    has_grown,
    has_length,
    lengths,
    past,
    put,
    stream,
)
from kvdelta.harness.conformance.models import full
from kvdelta.harness.conformance.outcome import Check, DoesNotApply, Factory, Refused, Wrong, said

CROPPED = (7, 90, 0)  # tokens taken back: of the newest, of those that are packed, none
OTHERS = (2, 3)  # rows


def _length(factory: Factory) -> str:
    cache = factory(full().config)
    has_length(cache, 0, "of an empty cache")
    for start, stop in pairwise(FORWARDS):
        feed(cache, start, stop)
        has_length(cache, stop, f"after {stop} tokens")
    return ""


def _mask_sizes(factory: Factory) -> str:
    cache = factory(full().config)
    for start, stop in pairwise(FORWARDS):
        returned = feed(cache, start, stop)
        when = f"{stop - start} tokens after {start}"
        if len(set(returned.masks)) > 1:
            raise Wrong(f"{when}: expected the same of every layer, since one is asked for all, got {returned.masks}")
        said_before = returned.masks[0][0]
        found = {side.shape[2] for sides in returned.held for side in sides}
        if found != {said_before}:
            raise Wrong(
                f"{when}: expected update to return the {said_before} tokens that were said, got {' and '.join(map(str, sorted(found)))}"
            )
        alike(returned.tokens(start, stop), stream(start, stop), f"{when}, where the mask has the new ones")
    return ""


def _contents(factory: Factory) -> str:
    exact, cosine = is_exact(factory), 1.0
    cache = factory(full().config)
    for start, stop in pairwise(FORWARDS):
        returned, what = feed(cache, start, stop), f"past of {start} tokens"
        if start:
            cosine = min(cosine, has_past(returned, start, ROWS, exact, what))
    return "bit for bit" if exact else f"cosine {cosine:.4f} to what was put"


def _dtype(factory: Factory) -> str:
    for dtype in (torch.bfloat16, torch.float16):
        cache = factory(full().config)
        for start, stop in pairwise(FORWARDS[:4]):
            returned = put(cache, stream(start, stop, dtype=dtype))
            for found in (side.dtype for sides in returned.held for side in sides):
                if found != dtype:
                    raise Wrong(f"{stop - start} tokens after {start}: expected {dtype}, got {found}")
    return ""


def _crop(factory: Factory) -> str:
    croppable = getattr(filled(factory), "is_croppable", True)
    exact, whole = is_exact(factory), past(filled(factory))
    for removed in CROPPED:
        caches = [filled(factory) for _ in range(2)]
        before = lengths(caches[0])
        try:
            for cache in caches:
                _take_back(cache, removed)
        except Exception as error:
            if croppable:
                raise
            name = type(error).__name__
            raise Refused(f"is_croppable is False; crop(-{removed}) raises {name}: {said(error)}") from None
        try:
            has_grown(caches[0], before, -removed, f"after crop(-{removed}) of {FIRST} tokens")
            _stays(caches, whole, FIRST - removed, exact, f"after crop(-{removed})")
        except Wrong as wrong:
            raise wrong if croppable else Wrong(f"is_croppable is False, yet crop answers; {wrong}") from None
    return "" if croppable else "though is_croppable is False, so that generate does not ask for it"


def _take_back(cache: Any, removed: int) -> None:
    if hasattr(cache, "activate_past_recording"):  # as assisted decoding does before it crops
        cache.activate_past_recording()
    cache.crop(-removed)


def _stays(caches: list[Any], whole: Held, kept: int, exact: bool, what: str) -> None:
    """Of two caches that were cropped alike, one is read and one goes on."""
    wanted = [(keys[:, :, :kept], values[:, :, :kept]) for keys, values in whole]
    keeps(past(caches[0], tokens=kept), wanted, exact, f"what stays {what}")
    new = stream(kept, kept + 5, OTHERS)
    returned = put(caches[1], new)
    alike(returned.tokens(kept, kept + 5), new, f"new tokens {what}")
    keeps(past(caches[1], tokens=kept + 5), _followed(wanted, new), exact, f"what stays and 5 new tokens {what}")


def _followed(held: Held, new: Held) -> Held:
    return [
        (torch.cat([keys, new_keys], dim=2), torch.cat([values, new_values], dim=2))
        for (keys, values), (new_keys, new_values) in zip(held, new, strict=True)
    ]


def _reset(factory: Factory) -> str:
    cache = filled(factory, OTHERS)
    feed(cache, *FORWARDS[3:5], OTHERS)
    cache.reset()
    has_length(cache, 0, "after reset")
    fill(cache)
    fresh = filled(factory)
    has_length(cache, lengths(fresh), "filled again after reset, against a fresh cache")
    same(past(cache), past(fresh), "filled again after reset, against a fresh cache")
    return ""


def _memory(factory: Factory) -> str:
    cache, sizes = factory(full().config), []
    for _ in range(3):
        fill(cache)
        sizes.append(_bytes(cache))
        cache.reset()
        if (left := _bytes(cache)) > sizes[-1]:
            raise Wrong(f"expected no more bytes after reset than before, {sizes[-1]}, got {left}")
    if not sizes[0]:
        raise Wrong("expected its tokens where they can be counted, in attributes of it, found no tensor there")
    if max(sizes) > sizes[0]:
        raise Wrong(f"expected {sizes[0]} bytes each time it is reset and filled, got {' then '.join(map(str, sizes))}")
    numbers = sum(side.numel() for sides in stream(0, FIRST) for side in sides)
    return f"{8 * sizes[0] / numbers:.1f} bits a number, of float32"


def _bytes(cache: Any) -> int:
    try:
        return sum(size for _, size in storages(cache, skipped=()).values())
    except Opaque as error:
        raise DoesNotApply(f"it holds a {error}, which cannot be counted") from None


SAYS = (
    Check("length", "get_seq_length is the number of tokens seen, in every layer", _length),
    Check("mask sizes", "get_mask_sizes, asked before update, is what update then returns", _mask_sizes),
    Check("contents", "update returns the past in its place, as it was put or nearly", _contents),
    Check("dtype", "what it returns has the dtype of what was put, bfloat16 or float16", _dtype),
)
CROP = Check("crop", "crop(-n) takes back the newest n tokens, and others may follow", _crop, may_refuse=True)
RESET = Check("reset", "after reset it is as good as new", _reset)
MEMORY = Check("memory held", "what it holds can be counted, and is no more after reset", _memory)
