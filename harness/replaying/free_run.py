"""Each scheme writes a text of its own over its own cache: how long it is, how it repeats itself, where it leaves exact's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from kvdelta.harness.caches.contenders import Contender, goes_alone, stores_sliding
from kvdelta.harness.protocols import prefill
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.records.replay import FREE_FILE, FreeRun, Replay, Sampling, save_texts
from kvdelta.harness.replaying.sampling import carried_on, picker
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.windows import Batch, Window
from kvdelta.harness.time_limit import at_most

GRAM = 4


def run_freely(
    folder: Path,
    record: Replay,
    contenders: Sequence[Contender],
    subject: Subject,
    batch: int,
    on_note: Callable[[str], None],
    time_limit: float | None = None,
) -> None:
    """The texts of all contenders, and what they are like, into the record. Exact's is the one that was sampled."""
    model, stops = subject.loaded.model, stop_tokens(subject.loaded.model)
    exact = np.stack([window.suffix[0].numpy() for window in subject.windows])
    texts = {record.rows[0].label: exact}
    for contender in contenders[1:]:
        on_note(f"{contender.label} writes by itself")
        try:
            with at_most(time_limit):
                texts[contender.label] = write_freely(
                    model, contender, subject.windows, exact.shape[1], record.sampling, record.settings.seed, batch
                )
        except RAISED as error:
            on_note(f"{contender.label} failed, the others go on: {reason_of(error)}")
    for row in record.rows:
        if row.label in texts:
            row.free_run = compared(texts[row.label], exact, stops)
    arrays = [texts.get(row.label, np.full_like(exact, -1)) for row in record.rows]
    save_texts(record, folder, FREE_FILE, np.stack(arrays))


def write_freely(
    model: Any, contender: Contender, windows: Sequence[Window], count: int, sampling: Sampling, seed: int, batch: int
) -> Int64[np.ndarray, "prompts written"]:
    """What the model writes over this cache after each prompt, with the randomness that exact had. The first token is
    exact's: it comes from the prompt's own logits."""
    size = 1 if goes_alone(contender) else batch
    texts = []
    for i in range(0, len(windows), size):
        some = Batch(tuple(windows[i : i + size]))
        cache = contender.empty(model)
        contender.fill(cache, model, some, prefill(model, some.prefix, whole=stores_sliding(contender)))
        pick = picker(sampling, seed, [window.index for window in some.windows])
        texts.append(carried_on(model, cache, some.suffix[:, 0].to(model.device), count, pick))
    return torch.cat(texts).numpy()


def compared(texts: Int64[np.ndarray, "prompts n"], exact: Int64[np.ndarray, "prompts n"], stops: set[int]) -> FreeRun:
    lengths = [_length(text, stops) for text in texts]
    return FreeRun(
        length=lengths,
        distinct=[_distinct(text[:length]) for text, length in zip(texts, lengths, strict=True)],
        departs=[_departs(text, other) for text, other in zip(texts, exact, strict=True)],
    )


def stop_tokens(model: Any) -> set[int]:
    """Those that end a text, as `generate` would."""
    config = getattr(model, "generation_config", None) or model.config
    found = config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _length(text: np.ndarray, stops: set[int]) -> int:
    ends = np.flatnonzero(np.isin(text, list(stops)))
    return int(ends[0]) if ends.size else len(text)


def _distinct(text: np.ndarray) -> float:
    if len(text) < GRAM:
        return float("nan")
    grams = np.lib.stride_tricks.sliding_window_view(text, GRAM)
    return len(np.unique(grams, axis=0)) / len(grams)


def _departs(text: np.ndarray, exact: np.ndarray) -> int | None:
    other = np.flatnonzero(text != exact)
    return int(other[0]) + 1 if other.size else None
