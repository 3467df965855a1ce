"""How many windows go through the model together, and one window's part of what they share."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import psutil
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvdelta.harness.caches.layers import SchemeLayer, WholeSlidingLayer
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.scoring import keeps_probabilities
from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch, Window
from kvdelta.schemes import kernels
from kvdelta.schemes.errors import UserError

LARGEST = 64  # more windows at once are hardly faster, and lose more when a run is stopped
TOKENS = 64  # of a forward on a CPU: fewer read the weights more often than they compute with them
SHARE = 0.7  # of the free memory: what is reckoned below is not all that a forward allocates
FLOAT32_COPIES = 4  # of one layer's keys or values while they are encoded or decoded


def batch_size(
    asked: str,
    model: Any,
    window_length: int,
    score_length: int,
    *,
    step: int | None = None,
    backward: bool = False,
) -> int:
    """The number asked for; of "auto" on a GPU as many as its free memory holds; on a CPU, where more at once are faster in
    short steps alone, as many as fill them, and one else. backward: gradients go through the suffix."""
    if asked != "auto":
        return int(asked)
    if model.device.type == "cuda":
        most = LARGEST
        free, _ = torch.cuda.mem_get_info(model.device)
        free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    else:
        most = 1 if step is None else TOKENS // step
        if most <= 1:
            return 1
        free = psutil.virtual_memory().available // 2  # the rest is for what else runs
    fits = int(SHARE * free / window_bytes(model, window_length, score_length, backward))
    return max(1, min(most, 2 ** (fits.bit_length() - 1) if fits else 1))


def window_bytes(model: Any, window_length: int, score_length: int, backward: bool = False) -> int:
    """About how much one window takes: the exact cache, a scheme's, the logits of both and what scoring keeps beside them, a
    layer's activations. backward: what the gradient is of, what attention read, and the gradient; that of the logits; the suffix's
    activations in all layers."""
    config, size = model.config.get_text_config(decoder=True), model.dtype.itemsize
    shapes = kv_shapes(model, "all").values()
    numbers = [shape.heads * (shape.key_channels + shape.value_channels) * window_length for shape in shapes]
    caches = 3 * sum(numbers) * size + FLOAT32_COPIES * 4 * max(numbers)
    kept = keeps_probabilities(model.device, model.dtype)
    logits = (2 + kept) * score_length * config.vocab_size * size
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    wide = max(max(inner) if isinstance(inner, list) else inner, config.hidden_size)  # a list: by layer
    activations = window_length * (8 * config.hidden_size + 3 * wide) * size
    if backward:
        caches += 3 * sum(numbers) * size
        logits += 2 * score_length * config.vocab_size * size
        in_float32 = 16 * config.hidden_size + 4 * wide  # norms in float32
        activations += score_length * config.num_hidden_layers * in_float32 * size
    return int(caches + logits + activations)


def in_batches(
    windows: Sequence[Window], size: int, work: Callable[[Batch], None], on_halved: Callable[[int, int], None]
) -> None:
    """Work on the windows, so many at a time. Where memory runs out a batch is begun again in halves.

    on_halved(windows, size): told of a batch that was too large, and the size to go on with; lets go what is held beside the
    model. UserError where one window is too much.
    """
    left = list(windows)
    while left:
        batch = Batch(tuple(left[:size]))
        try:
            work(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
            needed = one_line(error)
        else:
            left = left[size:]
            continue
        if len(batch) == 1:
            raise UserError(
                f"one window at a time is too much for the memory of this device: {needed}; use shorter windows, fewer "
                "schemes at a time, a smaller --dtype, or another device"
            )
        size = len(batch) // 2
        on_halved(len(batch), size)
        torch.cuda.empty_cache()


def fused_kernels(windows: int, on_note: Callable[[str], None]) -> AbstractContextManager[None]:
    """While a run of so many windows goes on, where they pay; the user is told once what the first of them waits for."""
    notices = ["loading kernels for this GPU; what is not in Triton's cache is compiled, a second each, and kept"]
    return kernels.for_windows(windows, lambda name: on_note(notices.pop()) if notices else None)


def halved(windows: int, size: int) -> str:
    """What a user is told then."""
    return f"out of memory with {windows} windows at once: going on with {size}"


CacheT = TypeVar("CacheT", bound=DynamicCache)


def rows_of(cache: CacheT, rows: slice) -> CacheT:
    """The part of a batch's cache that some windows have. Exact keys and values are views, which forwards leave as they are;
    of layers that they change in place (sliding, linear) it has copies."""
    some = copy.copy(cache)
    some.layers = [_rows_of(layer, rows) for layer in cache.layers]
    return some


def _rows_of(layer: Any, rows: slice) -> Any:
    if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
        some: Any = copy.copy(layer)
        some.keys, some.values = layer.keys[rows], layer.values[rows]
        return some
    indices = torch.arange(rows.start, rows.stop, device=getattr(layer, "device", None))
    if isinstance(layer, SchemeLayer | WholeSlidingLayer):
        return layer.of_rows(indices)
    some = copy.deepcopy(layer)
    # recurrent states have no method of that name, and reorder_cache takes fewer rows too
    select = getattr(some, "batch_select_indices", None) or some.reorder_cache
    select(indices)
    return some
