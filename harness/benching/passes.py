"""What storing a prefix and reading it costs, scheme by scheme: the two passes that `compare` makes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from kvdelta.harness.batching import rows_of
from kvdelta.harness.benching.turns import Clock, Parts, Turns
from kvdelta.harness.caches.contenders import Contender, goes_alone
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.records.bench import AGAIN, BASELINE, PREFILL, Times
from kvdelta.harness.subject.windows import Batch


def time_passes(
    model: Any,
    contenders: Sequence[Contender],
    batches: Mapping[int, Batch],
    turns: Turns,
    on_note: Callable[[str], None] = lambda text: None,
) -> list[Times]:
    """Seconds a window: of "prefill", and by contender of "fill", its pass 1 after the shared prefill (a foreign cache has a
    prefill of its own in it), and "suffix". contenders[0] is exact. batches: by prefix length."""
    times: list[Times] = []
    clock = Clock(model.device)
    for context, batch in batches.items():
        on_note(f"{context} tokens in the cache, {len(batch)} window{'s' * (len(batch) > 1)} at once")
        prefilled = prefill(model, batch.prefix)

        def prefilling(batch: Batch = batch) -> Parts:
            clock.lap()
            prefill(model, batch.prefix)
            return {PREFILL: clock.lap() / len(batch)}

        tasks: dict[str, Callable[[], Parts]] = {PREFILL: prefilling}
        for contender in contenders:
            name = BASELINE if contender is contenders[0] else contender.label
            tasks[name] = partial(_two_passes, model, contender, batch, prefilled, clock)
        tasks[AGAIN] = tasks[BASELINE]
        times += turns.take(tasks, context)
    return times


@torch.inference_mode()
def _two_passes(model: Any, contender: Contender, batch: Batch, prefilled: DynamicCache, clock: Clock) -> Parts:
    """As a comparison makes them: what may mix windows takes them one after another."""
    alone = len(batch) > 1 and goes_alone(contender)
    parts = [Batch((window,)) for window in batch.windows] if alone else [batch]
    filling = reading = 0.0
    for i, part in enumerate(parts):
        exact = rows_of(prefilled, slice(i, i + 1)) if alone else prefilled
        cache = contender.empty(model)
        clock.lap()
        contender.fill(cache, model, part, exact)
        filling += clock.lap()
        suffix_logits(model, cache, part.suffix)
        reading += clock.lap()
    return {"fill": filling / len(batch), "suffix": reading / len(batch)}
