"""Tasks from first to last, into a record."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from kvdelta.harness.caches.contenders import Contender, contenders_of
from kvdelta.harness.dropping import dropped
from kvdelta.harness.options import Options
from kvdelta.harness.records.provenance import open_folder
from kvdelta.harness.records.tasks import (
    TASKS_FILE,
    TaskRecord,
    load_tasks,
    save_tasks,
)
from kvdelta.harness.records.writer import holding
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import load_named
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.harness.tasks.preparing import prepared
from kvdelta.harness.tasks.through_caches import OnSample, OnScored, ThroughCaches
from kvdelta.harness.time_limit import check_time_limit

DEFAULT_SCHEMES = ("exact", "int8", "int4", "kivi4", "kivi2")


def run_tasks(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    how: TaskOptions | None = None,
    *,
    loaded: LoadedModel | None = None,
    on_sample: OnSample = lambda done, planned, what: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_scored: OnScored = lambda sample, labels: None,
) -> tuple[TaskRecord, Path]:
    """Score schemes on tasks; the record and its folder.

    options: model, text (the haystack), protocol, device, dtype, seed and folder. loaded: a model that there is already. What raises, or
    gives NaN or infinite logits, fails its own row, but for exact. A folder with the same settings is continued, a complete one is
    read. UserError: bad input, and as `compare`.
    """
    how = how or TaskOptions()
    options = how.options(options or Options())
    contenders = contenders_of(schemes, on_note)
    dropped(options, contenders)  # a typing error is said before a model is loaded
    if options.time_limit is not None:
        check_time_limit()
    loaded = loaded or load_named(options)
    work = prepared(loaded, options, how, contenders)
    with ExitStack() as held:
        damage: list[str] = []
        load = partial(load_tasks, on_damage=damage.append)
        folder, record = open_folder(
            options.out, TASKS_FILE, work.record.settings, load, holding(held, options.wait, on_note)
        )
        if record is None:
            record = work.record
            save_tasks(record, folder)
        elif record.status == "complete":
            on_note(f"{folder} holds these tasks already, complete; their record is printed again")
            return record, folder
        elif record.samples:
            on_note(f"continuing {folder}: {len(record.samples)} samples are there")
        if damage:
            on_note(*damage)
            save_tasks(record, folder)  # or what is added would stand behind a line that is not read
        ThroughCaches(work, contenders, options, record, folder, on_sample, on_note, on_scored).finish(how)
        return record, folder
