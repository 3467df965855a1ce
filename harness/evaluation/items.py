"""From what lm_eval gives of each item of a task to what its record keeps."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from kvdelta.harness.audit import total
from kvdelta.harness.evaluation.language_model import SchemeLM, total_reads
from kvdelta.harness.evaluation.right_choices import choices_of, gold_of
from kvdelta.harness.records.evaluation import TaskRecord, TaskRow
from kvdelta.harness.records.run import LayerReads

SHOWN = 200  # characters of an answer that are kept
ENDS = 40  # of what is right, from its end, where tasks of reasoning have the answer
KEPT = (
    "dataset_name", "test_split", "validation_split", "fewshot_split", "output_type", "num_fewshot", "doc_to_text", "doc_to_target",
    "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter", "generation_kwargs", "repeats",
)  # fmt: skip
"""Of a task's settings, those that say what it asks."""


def task_sha256(task: Any, limit: int | None) -> str:
    """Of a task's settings, without the folders that its data lie in, and of the items that are answered."""
    digest = hashlib.sha256(_text(_without_folders(task.dump_config())).encode())
    for _, doc in task.doc_iterator(limit=limit):
        digest.update(_text(doc).encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _without_folders(value: Any) -> Any:
    """Paths of files as their names: a record has no path of a machine."""
    if isinstance(value, dict):
        return {
            str(key): [PurePath(str(one)).name for one in _flat(inner)]
            if key == "data_files"
            else _without_folders(inner)
            for key, inner in value.items()
        }
    return [_without_folders(one) for one in value] if isinstance(value, list | tuple) else value


def _flat(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if values is None else [one for inner in values for one in _flat(inner)]


def task_record(
    name: str, task: Any, models: Sequence[SchemeLM], samples: Sequence[list[dict[str, Any]]], moved: dict[str, bool]
) -> TaskRecord:
    """samples: of each scheme, one for each item and filter. moved: by scheme, whether zeroed codes move the logits."""
    first = _of_one_filter(samples[0])
    for other in samples[1:]:  # a task that shows other items to each scheme would compare nothing
        assert [one["prompt_hash"] for one in _of_one_filter(other)] == [one["prompt_hash"] for one in first]
    means = {
        metric for metric, how in task.aggregation().items() if getattr(how, "__name__", "") in ("mean", "nanmean")
    }
    all_metrics = {metric for sample in samples[0] for metric in sample["metrics"]}
    shown = [
        metric for metric in all_metrics & means if all(_is_number(one[metric]) for one in samples[0] if metric in one)
    ]
    silent, requests = models[0].silent.get(name, (0, len(first)))
    rows = [_row(name, model, own, sorted(shown), moved) for model, own in zip(models, samples, strict=True)]
    for row in rows[1:]:
        if row.loglikelihoods and not row.lossless and row.loglikelihoods == rows[0].loglikelihoods:
            row.failures.append("its log-likelihoods are those of exact to the last bit")
    better = task.higher_is_better()
    contexts = [answer.context for answers in models[0].answered.values() for answer in answers]
    return TaskRecord(
        name=name,
        version=str(task.VERSION),
        output=task.OUTPUT_TYPE,
        num_fewshot=int(task.get_config("num_fewshot") or 0),
        settings={key: _shown(value) for key, value in _without_folders(task.dump_config()).items() if key in KEPT},
        context_tokens=(min(contexts), max(contexts)),
        items=[int(one["doc_id"]) for one in first],
        hashes=[str(one["doc_hash"]) for one in first],
        prompts=[str(one["prompt_hash"]) for one in first],
        gold=[gold_of(task, one["doc"]) for one in first],
        targets=[str(one["target"])[-ENDS:] for one in first],
        lengths=[_lengths(task, one["doc"]) for one in first],
        silent=silent,
        requests=requests,
        higher_is_better={metric: bool(better.get(metric, True)) for metric in shown},
        left_out=sorted((all_metrics | set(task.aggregation())) - set(shown)),  # with those that it asks for in vain
        rows=rows,
    )


def _shown(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _of_one_filter(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in samples if one["filter"] == samples[0]["filter"]]


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number)


def _row(
    name: str, model: SchemeLM, samples: list[dict[str, Any]], metrics: Sequence[str], moved: dict[str, bool]
) -> TaskRow:
    contender = model.answers.contenders[model.scheme]
    first = _of_one_filter(samples)
    likelihoods = [[float(one[0][0]) for one in sample["resps"]] for sample in first] if _scores(first) else []
    by_metric: dict[str, list[float]] = {}
    answers: dict[str, list[str]] = {}
    for sample in samples:
        for metric in metrics:
            if metric in sample:
                by_metric.setdefault(f"{metric},{sample['filter']}", []).append(float(sample[metric]))
        if not likelihoods:
            answers.setdefault(sample["filter"], []).append(_answer(sample["filtered_resps"]))
    answered = [model.answered[name, int(one["doc_id"])] for one in first]
    reads = total_reads([answer for item in answered for answer in item])
    items = [total(total_reads(item).values()) for item in answered]
    held = [answer for item in answered for answer in item]
    elements = sum(answer.elements for answer in held)
    return TaskRow(
        label=contender.label,
        name=contender.name,
        lossless=contender.lossless,
        metrics=by_metric,
        loglikelihoods=likelihoods,
        answers=answers,
        pairs=[item.pairs for item in items],
        key_pairs=[item.key for item in items],
        value_pairs=[item.value for item in items],
        reads={layer: LayerReads(pairs=one.pairs, key=one.key, value=one.value) for layer, one in reads.items()},
        bits=8 * sum(answer.counted for answer in held) / elements if elements else 16.0,
        failures=_failures(model, reads, likelihoods, moved),
    )


def _scores(samples: list[dict[str, Any]]) -> bool:
    return not isinstance(samples[0]["resps"][0][0], str)


def _answer(filtered: Any) -> str:
    one = filtered[0] if isinstance(filtered, list) and filtered else filtered
    return str(one)[:SHOWN]


def _failures(
    model: SchemeLM, reads: dict[int, Any], likelihoods: list[list[float]], moved: dict[str, bool]
) -> list[str]:
    """Why this row cannot be believed, in words; layer by layer, so that one that reads does not vouch for others."""
    contender = model.answers.contenders[model.scheme]
    found = []
    if not np.isfinite([one for item in likelihoods for one in item]).all():
        found.append("NaN or infinite log-likelihoods")
    if contender.lossless:
        return found
    for side, layers in contender.empty(model.model).lossy_layers.items():
        none = [layer for layer in layers if layer not in reads or getattr(reads[layer], side) == 0]
        if none and len(none) == len(layers):
            found.append(f"reads no {side}s from packed storage")
        elif none:
            found.append(f"reads no {side}s from packed storage in layers {', '.join(map(str, none))}")
    if moved.get(contender.label) is False:
        found.append("zeroed codes do not move the logits")
    return found


def _lengths(task: Any, doc: Any) -> list[int]:
    return [len(str(one)) for one in choices_of(task, doc)]
