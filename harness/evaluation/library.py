"""lm-evaluation-harness itself (package lm_eval): is it there, without its bars and advice, and the tasks that it knows."""

import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kvdelta.harness.evaluation.task_files import check_files, without_task
from kvdelta.harness.subject import hub
from kvdelta.harness.subject.errors import one_line
from kvdelta.schemes.errors import UserError

EXTRA = "pip install 'kvdelta[lm-eval]'"
WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
OUTPUTS = ("multiple_choice", "loglikelihood", "generate_until")
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
ROLLING = (
    "asks for the log-likelihood of a whole text (loglikelihood_rolling): that is one pass, in which every token is attended to as it was "
    "computed and nothing is read from storage; kvdelta compare scores texts, in two passes"
)


def library_version() -> str:
    """UserError, which names the extra, where the library is not installed."""
    try:
        importlib.import_module("lm_eval")
        return importlib.metadata.version("lm_eval")
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness cannot be imported ({one_line(error)}): {EXTRA}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without its log of every step and its bars: stderr is ours."""
    import datasets
    from tqdm import tqdm

    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    modules = [sys.modules[name] for name in WITH_BARS if name in sys.modules]
    for module in modules:
        vars(module)["tqdm"] = lambda *args, **how: tqdm(*args, **{**how, "disable": True})
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        for module in modules:
            vars(module)["tqdm"] = tqdm
        if not bars:
            datasets.enable_progress_bars()


def load_tasks(names: Sequence[str], include_path: str | None) -> dict[str, Any]:
    """The tasks by name, groups and tags taken apart. include_path: a folder whose YAML files are looked at beside the library's own.
    UserError: no such task, data that cannot be had, a task that reads no cache or runs code that a model wrote."""
    library_version()
    if include_path is not None and not os.path.isdir(include_path):
        raise UserError(
            f"--include-path {include_path}: there is no such folder; name one with the YAML files of tasks"
        )
    no_task = check_files(include_path) if include_path is not None else []
    with quiet():
        manager = _manager(names, include_path)
        for name in names:
            if name not in manager.all_tasks:
                raise UserError(_unknown(name, manager.all_tasks) + without_task(no_task))
        tasks: dict[str, Any] = {}
        for name in names:
            tasks |= _loaded(manager, name)
    for name, task in tasks.items():
        _check(name, task)
    return tasks


def _manager(names: Sequence[str], include_path: str | None) -> Any:
    """Looks at the folder alone where that has all tasks: the library's own are 14,000 files, which take seconds."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # a group or a tag may name others
            return own
    return TaskManager(include_path=include_path)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "lm_eval ls tasks lists them"
    return f"lm-evaluation-harness knows no task {name!r} among {len(known)}: {hint} (tasks of your own: --include-path FOLDER)"


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    said = _yaml(manager, name)
    if said.get("output_type") == "loglikelihood_rolling":  # before its data are fetched
        raise UserError(f"task {name} {ROLLING}")
    complaints: list[str] = []
    try:
        with hub.asked(), _heard(complaints):
            return dict(manager.load([name])["tasks"])
    except Exception as error:  # datasets, the hub's client, YAML, and code of the task raise their own
        if missing := _missing(error):
            raise UserError(f"task {name} needs a package that is not installed: pip install {missing}") from None
        reason = _reason(said, error, complaints)
        raise UserError(f"task {name} cannot be loaded: {reason}") from None


def _reason(said: dict[str, Any], error: Exception, complaints: Sequence[str]) -> str:
    """Why a task cannot be loaded, where the library's own words do not help in ours."""
    path = said.get("dataset_path")
    splits = {key: said[key] for key in SPLITS if said.get(key)}
    for key, split in splits.items():
        if isinstance(error, KeyError) and error.args == (split,):
            return f"its {key} is {split!r}, and its data have no split of this name{_splits(said)}"
    if isinstance(error, StopIteration):
        return f"its data have no items: {_files(said)}"
    if isinstance(error, IndexError) and said.get("output_type") == "multiple_choice":
        target, choice = said.get("doc_to_target"), said.get("doc_to_choice")
        return (
            f"the right choice of its first item is out of range ({one_line(error)}): doc_to_target ({target!r}) is a position from 0 in "
            f"doc_to_choice ({choice!r})"
        )
    if isinstance(path, str) and "/" in path and not os.path.exists(path):
        return f"its data are {path}; {hub.refusal(path, error, 'datasets/')}"
    reason = one_line(error) if str(error) not in ("", "None") else one_line([*complaints, repr(error)][0])
    lost = isinstance(error, FileNotFoundError)
    return reason + "; paths in data_files are from the folder that the command is given in" * lost


def _data_files(said: dict[str, Any]) -> Any:
    return (said.get("dataset_kwargs") or {}).get("data_files")


def _splits(said: dict[str, Any]) -> str:
    files = _data_files(said)
    return f"; data_files has {', '.join(map(str, files))}" if isinstance(files, dict) else ""


def _files(said: dict[str, Any]) -> str:
    files = _data_files(said)
    named = [str(one) for one in (files.values() if isinstance(files, dict) else [files]) if one]
    return f"is one of {', '.join(named)} empty?" if named else f"see {said.get('dataset_path')}"


@contextmanager
def _heard(complaints: list[str]) -> Iterator[None]:
    """What the library logs as an error goes into the list, not to stderr: it says more there than in what it raises."""
    handler, logger = logging.Handler(), logging.getLogger("lm_eval")
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def _missing(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        error = error.__cause__ or error.__context__
    return None


def _yaml(manager: Any, name: str) -> dict[str, Any]:
    """What the file of a task, or of a group, says; nothing where there is none, or it cannot be read, which loading it then says."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = getattr(manager.task_index.get(name), "yaml_path", None)
    try:
        return dict(load_yaml(path, resolve_func=False)) if path else {}
    except Exception:  # YAML's own, and the loader's
        return {}


def _check(name: str, task: Any) -> None:
    output = task.OUTPUT_TYPE
    if output == "loglikelihood_rolling":
        raise UserError(f"task {name} {ROLLING}")
    if output not in OUTPUTS:
        raise UserError(f"task {name} asks for {output}; kvdelta answers {', '.join(OUTPUTS)}")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task {name} runs code that the model wrote, which kvdelta does not; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} shows images or sound; kvdelta answers tasks of text alone; leave it out")
