"""Is every record in a folder as it was written? Checked by its hashes and by the sums of its tokens."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvdelta.harness.records import hashes
from kvdelta.harness.records.bench import BENCH_FILE, Bench
from kvdelta.harness.records.evaluation import EVALUATION_FILE, Evaluation, load_evaluation
from kvdelta.harness.records.measurement import Measurement, has_window
from kvdelta.harness.records.recommendation import RECOMMENDATION_FILE, Recommendation
from kvdelta.harness.records.record import Record, read_content, read_record
from kvdelta.harness.records.replay import REPLAY_FILE, Replay
from kvdelta.harness.records.run import Header
from kvdelta.harness.records.run_folder import RUN_FILE, load_whole
from kvdelta.harness.records.sweep import SWEEP_FILE, Sweep
from kvdelta.harness.records.tasks import TASKS_FILE, TaskRecord, load_tasks
from kvdelta.harness.records.tokens import has_tokens
from kvdelta.schemes.errors import UserError

KINDS: dict[str, type[Record]] = {
    "outliers.json": Measurement,
    "errors.json": Measurement,
    "sensitivity.json": Measurement,
    REPLAY_FILE: Replay,
    SWEEP_FILE: Sweep,
    BENCH_FILE: Bench,
    RECOMMENDATION_FILE: Recommendation,
    TASKS_FILE: TaskRecord,
    EVALUATION_FILE: Evaluation,
}


@dataclass(frozen=True)
class Verified:
    """Of one record. holds: what was checked, in words. damage: what is wrong, a line each. hashed: whether it has hashes."""

    file: Path
    holds: str = ""
    hashed: bool = True
    damage: list[str] = field(default_factory=list)


def verify(folder: Path) -> Iterator[Verified]:
    """Every record in a folder and below it. UserError where there is none."""
    there = folder.rglob("*.json") if os.path.isdir(folder) else ()
    found = sorted(path for path in there if path.name in (RUN_FILE, *KINDS))
    if not found:
        raise UserError(f"{folder} holds no record: none of {', '.join((RUN_FILE, *KINDS))}, in it or below it")
    for path in found:
        try:
            one = {RUN_FILE: _run, EVALUATION_FILE: _evaluation}.get(path.name, _other)
            yield one(path)
        except UserError as error:
            yield Verified(path, damage=[str(error)])


def _run(path: Path) -> Verified:
    found = load_whole(path.parent)
    run = found.run
    kept = "sums recomputed from its tokens" if has_tokens(path.parent) else "its tokens were not kept"
    count = f"{len(run.windows) + len(found.lost)} of {len(run.settings.windows)} windows"
    return Verified(
        path, f"{len(run.contenders)} schemes, {count}, {run.status}; {kept}", _hashed(path), [*map(str, found.lost)]
    )


def _evaluation(path: Path) -> Verified:
    record = load_evaluation(path.parent)
    items = sum(len(task.items) for task in record.tasks)
    return Verified(path, f"{len(record.tasks)} tasks, {items} items, {record.status}", _hashed(path))


def _other(path: Path) -> Verified:
    record = read_record(path.parent, path.name, KINDS[path.name])
    if isinstance(record, TaskRecord):
        whole = load_tasks(path.parent)  # what its parts say of each other too
        holds = f"{len(whole.contenders)} schemes, {len(whole.samples)} of {whole.planned} samples, {whole.status}"
        return Verified(path, holds, _hashed(path))
    files = record.files if isinstance(record, Header) else {}
    damage = [f"{name}: {why}" for name, why in hashes.damaged_files(path.parent, files).items()]
    if isinstance(record, Measurement):
        unknown = [window for window in record.settings.windows if not has_window(record, path.parent, window)]
        damage += [f"window {window} is not whole" for window in unknown if record.status == "complete" and not damage]
    return Verified(path, f"{len(files)} files beside it" if files else "", _hashed(path), damage)


def _hashed(path: Path) -> bool:
    return bool(read_content(path.parent, path.name).get(hashes.HASH))
