"""Tasks answered by several schemes, into one record: each task once, over one prefill of each context."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvdelta.harness.caches.contenders import Contender, SchemeContender, contenders_of
from kvdelta.harness.comparison import DEFAULT_SCHEMES
from kvdelta.harness.evaluation.library import library_version, load_tasks, quiet
from kvdelta.harness.evaluation.options import EvaluationOptions
from kvdelta.harness.evaluation.right_choices import check_gold
from kvdelta.harness.leaks import check_models
from kvdelta.harness.options import Options
from kvdelta.harness.records.evaluation import (
    EVALUATION_FILE,
    Evaluation,
    EvaluationSettings,
    TaskRecord,
    load_evaluation,
    save_evaluation,
)
from kvdelta.harness.records.hashes import of_bytes
from kvdelta.harness.records.provenance import MEASURES, commit, open_folder, versions
from kvdelta.harness.records.writer import holding
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import load_named
from kvdelta.schemes.errors import UserError

FEWSHOT_SEED = 1234  # lm_eval's own, so that seed 0 shows what it shows


def evaluate(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    how: EvaluationOptions | None = None,
    *,
    loaded: LoadedModel | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    on_answer: Callable[[int, int, str], None] = lambda done, planned, task: None,
    on_scored: Callable[[TaskRecord], None] = lambda task: None,
) -> tuple[Evaluation, Path]:
    """Answer tasks by every scheme, exact first; the record and its folder.

    options: model, device, dtype, seed and folder. loaded: a model that there is already. on_answer: called with how many requests of a task were answered, of how many,
    and its name; on_scored: with each task that is finished. A folder with the same settings goes on after its last finished task, a complete one is read. UserError:
    bad input, among it a task that would read nothing from storage.
    """
    how, options = how or EvaluationOptions(()), options or Options()
    library_version()
    contenders = [_ours(one) for one in contenders_of(schemes, on_note)]
    tasks = load_tasks(how.tasks, how.include_path)
    for name, task in tasks.items():
        check_gold(name, task, how.limit)
    loaded = loaded or load_named(options)
    check_models(contenders, loaded)
    _set_up(tasks, how, options.seed)
    settings = _settings(options, how, tasks, contenders, loaded)
    with ExitStack() as held:
        folder, record = open_folder(
            options.out, EVALUATION_FILE, settings, load_evaluation, holding(held, options.wait, on_note)
        )
        if record is None:
            record = _begun(options, settings, loaded)  # saved with its first task, which may be refused
        if record.status == "complete":
            on_note(f"{folder} holds these tasks already, answered; its record is printed again")
            return record, folder
        done = {task.name for task in record.tasks}
        for name, task in tasks.items():
            if name not in done:
                left = [one for one in contenders if one.label not in record.failed]
                _answer(record, name, task, left, loaded, how, options.seed, on_note, on_answer)
                save_evaluation(record, folder)
                on_scored(record.tasks[-1])
        record.status = "complete"
        save_evaluation(record, folder)
        return record, folder


def _ours(contender: Contender) -> SchemeContender:
    from kvdelta.harness.evaluation.language_model import ours

    return ours(contender)


def _set_up(tasks: dict[str, Any], how: EvaluationOptions, seed: int) -> None:
    """What lm_eval.simple_evaluate does with tasks before it evaluates them."""
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if how.num_fewshot is not None and own != 0:  # a 0 in a task's file means that it cannot do with more
            task.set_config(key="num_fewshot", value=how.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)


def _settings(
    options: Options,
    how: EvaluationOptions,
    tasks: dict[str, Any],
    contenders: Sequence[SchemeContender],
    loaded: LoadedModel,
) -> EvaluationSettings:
    from kvdelta.harness.evaluation.items import task_sha256

    model = loaded.model
    template = str(loaded.tokenizer.chat_template or "") if how.apply_chat_template else None
    if template == "":
        raise UserError(f"the tokenizer of {loaded.name} has no chat template; leave --apply-chat-template out")
    return EvaluationSettings(
        model=loaded.source,
        tasks={name: task_sha256(task, how.limit) for name, task in tasks.items()},
        limit=how.limit,
        num_fewshot=how.num_fewshot,
        feed_last=how.feed_last,
        chat_template=None if template is None else of_bytes(template.encode()),
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        seed=options.seed,
        contenders=[contender.name for contender in contenders],
        versions=versions() | {"lm_eval": library_version()},
        commit=commit(),
        measures=MEASURES,
    )


def _begun(options: Options, settings: EvaluationSettings, loaded: LoadedModel) -> Evaluation:
    return Evaluation(
        kvdelta=settings.versions["kvdelta"],
        command=options.command,
        flags=dict(options.flags),
        commit=settings.commit,
        model_name=loaded.name,
        layers=loaded.model.config.get_text_config(decoder=True).num_hidden_layers,
        threads=torch.get_num_threads(),
        settings=settings,
    )


def _answer(
    record: Evaluation,
    name: str,
    task: Any,
    contenders: Sequence[SchemeContender],
    loaded: LoadedModel,
    how: EvaluationOptions,
    seed: int,
    on_note: Callable[[str], None],
    on_answer: Callable[[int, int, str], None],
) -> None:
    """One task by all schemes, into the record."""
    from lm_eval import evaluator

    from kvdelta.harness.evaluation.items import task_record
    from kvdelta.harness.evaluation.language_model import SchemeLM

    started = time.perf_counter()
    models = SchemeLM.several(
        loaded, contenders, feed_last=how.feed_last, on_answer=lambda done, planned: on_answer(done, planned, name)
    )
    samples: dict[int, Any] = {}  # by position of the scheme
    answers = models[0].answers
    for model in models:
        if model.scheme in answers.failed:  # known since exact was asked, first
            continue
        _seed(task, seed)
        with quiet():
            found: Any = evaluator.evaluate(
                model,
                {"tasks": {name: task}},
                limit=how.limit,
                bootstrap_iters=0,
                apply_chat_template=how.apply_chat_template,
                fewshot_as_multiturn=how.apply_chat_template,
            )
        samples[model.scheme] = found["samples"][name]
    if not record.zeroed_codes_move_logits:
        record.zeroed_codes_move_logits = answers.zeroed_codes_move()
    for scheme, reason in answers.failed.items():
        record.failed[models[scheme].label] = reason
        on_note(f"{models[scheme].label} failed, the others go on: {reason}")
    models = [model for model in models if model.scheme not in answers.failed]
    record.tasks.append(
        task_record(name, task, models, [samples[model.scheme] for model in models], record.zeroed_codes_move_logits)
    )
    record.seconds[name] = round(time.perf_counter() - started, 1)
    on_note(f"{name}: {len(record.tasks[-1].items)} items by {len(models)} schemes in {record.seconds[name]:.0f} s")


def _seed(task: Any, seed: int) -> None:
    """Every scheme is shown the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)
