"""The record of tasks answered by schemes, lm-eval.json: of every task, scheme and item what was answered and what was read."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kvdelta.harness.records.record import Record, Typed, read_record, save_record
from kvdelta.harness.records.run import LayerReads, Sum
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


class Evaluation(Record):
    """What `kvdelta lm-eval` leaves. zeroed_codes_move_logits: by lossy scheme that packed something of the first context."""

    kvdelta: str
    status: Literal["running", "complete"] = "running"
    command: str
    flags: dict[str, Any] = Field(
        default_factory=dict
    )  # of the command, with what they came to; --config takes them again
    commit: str | None
    model_name: str
    layers: int
    threads: int
    settings: EvaluationSettings
    seconds: dict[str, float] = Field(default_factory=dict)
    zeroed_codes_move_logits: dict[str, bool] = Field(default_factory=dict)
    tasks: list[TaskRecord] = Field(default_factory=list)


def load_evaluation(folder: str | Path) -> Evaluation:
    """UserError where `folder` holds none, or its parts do not fit each other."""
    record = read_record(folder, EVALUATION_FILE, Evaluation)
    for task in record.tasks:
        for row in task.rows:
            counts = [len(one) for one in (*row.metrics.values(), *row.answers.values())]
            counts += [
                len(one)
                for one in (
                    row.pairs,
                    row.key_pairs,
                    row.value_pairs,
                    task.hashes,
                    task.prompts,
                    task.gold,
                    task.targets,
                )
            ]
            counts += [len(row.loglikelihoods)] if row.loglikelihoods else []
            if set(counts) != {len(task.items)}:
                raise UserError(
                    f"{Path(folder) / EVALUATION_FILE} is not a run record: {task.name} has {len(task.items)} items, and {row.label} not "
                    "a figure for each"
                )
    return record


def has_evaluation(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / EVALUATION_FILE)


def save_evaluation(record: Evaluation, folder: Path) -> None:
    save_record(record, folder / EVALUATION_FILE)
