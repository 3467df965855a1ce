"""How far the records in a folder are: what is said to who interrupts a command. Quick: files of arrays are counted and not read."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from kvdelta.harness.records.evaluation import EVALUATION_FILE, load_evaluation
from kvdelta.harness.records.measurement import Kind, load_measurement, window_file
from kvdelta.harness.records.run_folder import RUN_FILE, parts_of, read_run
from kvdelta.harness.records.tasks import TASKS_FILE, load_tasks
from kvdelta.schemes.errors import UserError


def progress(folder: Path) -> str:
    """As "3 of 8 windows"; empty where no record that counts something lies in the folder."""
    said = [count(folder) for file, count in COUNTS.items() if os.path.isfile(folder / file)]
    return ", ".join(said)


def _or_damage(count: Callable[[Path], str], folder: Path) -> str:
    try:
        return count(folder)
    except UserError:
        return "a record that is damaged"


def _run(folder: Path) -> str:
    runs = [read_run(folder, file)[0] for file in (RUN_FILE, *parts_of(folder))]
    scored = {window.index for run in runs for window in run.windows}
    return f"{len(scored)} of {len(runs[0].settings.windows)} windows"


def _measured(kind: Kind, folder: Path) -> str:
    windows = load_measurement(folder, kind).settings.windows
    there = sum(os.path.isfile(folder / window_file(kind, window)) for window in windows)
    return f"{kind}, {there} of {len(windows)} windows"


def _samples(folder: Path) -> str:
    record = load_tasks(folder, on_damage=lambda text: None)
    return f"{len(record.samples)} samples"


def _tasks(folder: Path) -> str:
    record = load_evaluation(folder)
    return f"{len(record.tasks)} of {len(record.settings.tasks)} tasks"


COUNTS: dict[str, Callable[[Path], str]] = {
    file: partial(_or_damage, count)
    for file, count in {
        RUN_FILE: _run,
        **{f"{kind}.json": partial(_measured, kind) for kind in get_args(Kind)},
        TASKS_FILE: _samples,
        EVALUATION_FILE: _tasks,
    }.items()
}
