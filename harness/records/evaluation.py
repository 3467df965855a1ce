"""The record of tasks answered by schemes, lm-eval.json: of every task, scheme and item what was answered and what was read."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kvdelta.harness.records.record import Typed, read_record, save_record
from kvdelta.harness.records.run import LayerReads, Origin, Sum
from kvdelta.schemes.errors import UserError

EVALUATION_FILE = "lm-eval.json"


class EvaluationSettings(Typed):
    """What decides the numbers. tasks: by name the SHA-256 of its settings, as loaded, and of its items; limit: items of each task, from the
    first; feed_last: tokens of a context that are fed after it was stored."""

    model: dict[str, str]
    tasks: dict[str, str]
    limit: int | None
    num_fewshot: int | None
    feed_last: int
    chat_template: str | None  # SHA-256 of the template; None: not applied
    device: str
    dtype: str
    attention: str
    seed: int
    contenders: list[str]
    versions: dict[str, str]
    commit: str | None
    measures: int


class TaskRow(Typed):
    """One scheme. Lists are by item. metrics: by "metric,filter"; loglikelihoods: of each request, nats; none of a task that generates.
    answers: by filter what was taken as the answer of a task that generates. pairs, key_pairs, value_pairs: attended, and read from packed
    storage, over layers; reads: by layer, over items. bits: measured bits of a number, over all contexts. failures: why the row cannot be
    believed."""

    label: str
    name: str
    lossless: bool
    metrics: dict[str, list[Sum]]
    loglikelihoods: list[list[Sum]]
    answers: dict[str, list[str]]
    pairs: list[int]
    key_pairs: list[int]
    value_pairs: list[int]
    reads: dict[int, LayerReads]
    bits: float
    failures: list[str] = Field(default_factory=list)


class TaskRecord(Typed):
    """One task. version, num_fewshot: as lm_eval says them. settings: of its YAML file, what is no path. context_tokens: of the shortest
    context, and of the longest. items: positions in its data; hashes: of
    each item; prompts: of what the model was shown first. gold: the position of the right choice, None where there is not one; targets: the end of what
    is right, in words; lengths: characters of each choice; silent, requests: of so many requests so many read nothing from storage, each continuation being one token
    that the exact prefill predicts. left_out: metrics whose figure is no mean over items."""

    name: str
    version: str
    output: Literal["multiple_choice", "loglikelihood", "generate_until"]
    num_fewshot: int
    settings: dict[str, Any]
    context_tokens: tuple[int, int]
    items: list[int]
    hashes: list[str]
    prompts: list[str]
    gold: list[int | None]
    targets: list[str]
    lengths: list[list[int]]
    silent: int
    requests: int
    higher_is_better: dict[str, bool]
    left_out: list[str] = Field(default_factory=list)
    rows: list[TaskRow]


class Evaluation(Origin):
    """What `kvdelta lm-eval` leaves. failed: by label, why a scheme has no row in the task that it failed in, and in those after it. zeroed_codes_move_logits: by lossy scheme that packed something of the first context."""

    settings: EvaluationSettings
    seconds: dict[str, float] = Field(default_factory=dict)
    zeroed_codes_move_logits: dict[str, bool] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)
    tasks: list[TaskRecord] = Field(default_factory=list)


def load_evaluation(folder: str | Path) -> Evaluation:
    """UserError where `folder` holds none, or its parts do not fit each other."""
    record = read_record(folder, EVALUATION_FILE, Evaluation)
    for task in record.tasks:
        if wrong := _wrong(task):
            raise UserError(f"{Path(folder) / EVALUATION_FILE} is not a run record: task {task.name}: {wrong}")
    return record


def _wrong(task: TaskRecord) -> str:
    """The first thing in which a task's parts do not fit each other; empty where they do."""
    count = len(task.items)
    if not count or not task.rows:
        return f"it has {count} items and {len(task.rows)} rows; 1 or more of each"
    for name in ("hashes", "prompts", "gold", "targets", "lengths"):
        if len(getattr(task, name)) != count:
            return f"it has {count} items and {len(getattr(task, name))} {name}"
    if task.requests < 1 or not 0 <= task.silent <= task.requests:
        return f"{task.silent} of its {task.requests} requests read nothing"
    for item, gold, lengths in zip(task.items, task.gold, task.lengths, strict=True):
        if any(length < 0 for length in lengths):
            return f"item {item} has a choice of under 0 characters"
        if gold is not None and not 0 <= gold < max(1, len(lengths)):
            return f"the right choice of item {item} is {gold}, of {len(lengths)}"
    return next((f"{row.label}: {wrong}" for row in task.rows if (wrong := _wrong_row(task, row))), "")


def _wrong_row(task: TaskRecord, row: TaskRow) -> str:
    first, count = task.rows[0], len(task.items)
    for kind, mine, others in (("metrics", row.metrics, first.metrics), ("answers", row.answers, first.answers)):
        if set(mine) != set(others):
            return f"its {kind} are {', '.join(sorted(mine)) or 'none'}, and those of {first.label} {', '.join(sorted(others)) or 'none'}"
    if bool(row.loglikelihoods) != (task.output != "generate_until"):
        return f"it has {len(row.loglikelihoods)} log-likelihoods in a task of {task.output}"
    of_items = [*row.metrics.values(), *row.answers.values(), row.pairs, row.key_pairs, row.value_pairs]
    if any(len(one) != count for one in of_items) or len(row.loglikelihoods) not in (0, count):
        return f"{count} items, and not a figure for each"
    for item, likelihoods, lengths in zip(task.items, row.loglikelihoods, task.lengths, strict=False):
        if len(likelihoods) < max(1, len(lengths)):
            return f"item {item} has {len(likelihoods)} log-likelihoods of {max(1, len(lengths))} choices"
    return ""


def has_evaluation(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / EVALUATION_FILE)


def save_evaluation(record: Evaluation, folder: Path) -> None:
    save_record(record, folder / EVALUATION_FILE)
