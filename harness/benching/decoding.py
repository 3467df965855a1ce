"""What a step of generation costs over a long cache, and the bytes that the cache holds."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from kvdelta.harness.benching.turns import Clock, Parts, Turns
from kvdelta.harness.caches.contenders import Contender, SchemeContender
from kvdelta.harness.caches.holdings import Opaque, storages
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import prefill
from kvdelta.harness.raising import RAISED
from kvdelta.harness.records.bench import AGAIN, BASELINE, Held, Times
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.windows import Batch
from kvdelta.harness.time_limit import at_most

WARM_UP = 3


def time_steps(
    model: Any,
    contenders: Sequence[Contender],
    batches: Mapping[int, Batch],
    turns: Turns,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[list[Times], list[Held]]:
    """Seconds of each step, one token after another, greedy; and what each cache holds after the last.

    contenders[0] is exact: transformers' DynamicCache. A scheme comes as it is, decoding its past at every step, and
    mirrored, decoding each block once. batches: by tokens in the cache when the first step is taken.
    """
    times: list[Times] = []
    held: list[Held] = []
    for context, batch in batches.items():
        on_note(f"{context} tokens in the cache, {turns.rounds} steps")
        decoders = {name: _Decoder(model, cache, batch) for name, cache in _caches(model, contenders, batch, turns)}
        times += turns.take({name: one.step for name, one in decoders.items()}, context, warm_up=WARM_UP)
        for name, one in decoders.items():
            if name not in (AGAIN, *turns.left_out):
                held.append(Held(name=name, context=context, resident=one.resident(), transient=one.peak))
    return times, held


def _caches(model: Any, contenders: Sequence[Contender], batch: Batch, turns: Turns) -> Iterator[tuple[str, Any]]:
    prefilled = prefill(model, batch.prefix)
    yield BASELINE, copy.deepcopy(prefilled)
    for contender in contenders[1:]:
        if contender.label in turns.left_out:
            continue
        try:
            with at_most(turns.time_limit):
                filled = {contender.label: contender.empty(model)}
                contender.fill(filled[contender.label], model, batch, prefilled)
                if isinstance(contender, SchemeContender):
                    mirrored = SchemeCache.for_model(contender.scheme, model, mirrored=True)
                    filled[f"{contender.label}, mirrored"] = mirrored.fill(prefilled)
        except RAISED as error:  # as in a turn
            turns.leave_out(contender.label, batch.windows[0].prefix_length, error)
            continue
        yield from filled.items()
    yield AGAIN, copy.deepcopy(prefilled)


class _Decoder:
    def __init__(self, model: Any, cache: Any, batch: Batch):
        self.model, self.cache, self.clock = model, cache, Clock(model.device)
        self.token = batch.suffix[:, :1].to(model.device)
        self.peak = (
            0 if model.device.type == "cuda" else None
        )  # bytes beyond what was held when a step began, of all steps

    @torch.inference_mode()
    def step(self) -> Parts:
        held = self._held()
        self.clock.lap()
        logits = forward(self.model, self.token, self.cache, logits_to_keep=1).logits
        self.token = logits[:, -1:].argmax(dim=-1)
        seconds = self.clock.lap()
        if self.peak is not None:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.model.device) - held)
        return {"step": seconds}

    def _held(self) -> int:
        """Bytes on the device now, from where on the peak is counted."""
        if self.peak is None:
            return 0
        torch.cuda.reset_peak_memory_stats(self.model.device)
        return torch.cuda.memory_allocated(self.model.device)

    def resident(self) -> int | None:
        try:
            return sum(size for _, size in storages(self.cache, skipped=()).values()) or None
        except Opaque:
            return None
