"""What a bench is of: the windows that are timed, and the head of its record."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from kvdelta.harness.batching import batch_size
from kvdelta.harness.benching.turns import Turns
from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.options import Options
from kvdelta.harness.records.bench import Bench, BenchKind
from kvdelta.harness.records.provenance import commit, host, versions
from kvdelta.harness.subject.windows import Batch, cut_windows


def batches_of(
    model: Any, tokens: Int64[Tensor, "text"], contexts: Sequence[int], suffix: int, asked: str
) -> dict[int, Batch]:
    """By context, tokens of a prefix, a batch of windows with so many behind it; asked: how many, as `batch_size` takes it.
    UserError where the text is shorter than one."""
    batches = {}
    for context in contexts:
        windows = cut_windows(tokens, window_length=context + suffix, score_length=suffix)
        batches[context] = Batch(tuple(windows[: batch_size(asked, model, context + suffix, suffix)]))
    return batches


def record_of(
    kind: BenchKind,
    options: Options,
    contenders: Sequence[Contender],
    name: str,
    model: Any,
    turns: Turns,
    batch: int,
    suffix: int,
) -> Bench:
    """Without its times. name: of the model; batch: windows at once; suffix: tokens that are scored, or steps."""
    cuda = model.device.type == "cuda"
    return Bench(
        kind=kind,
        kvdelta=versions()["kvdelta"],
        command=options.command,
        commit=commit(),
        versions=versions(),
        host=host(),
        model_name=name,
        contenders={contender.label: contender.name for contender in contenders},
        device=torch.cuda.get_device_name(model.device) if cuda else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch=batch,
        rounds=turns.rounds,
        suffix=suffix,
        left_out=turns.left_out,
    )
