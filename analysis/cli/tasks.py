"""`kvdelta tasks`: retrieval and tracking through the quantized cache. Light: imports what it needs in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvdelta.analysis.cli import log
from kvdelta.analysis.cli.flags import Caches, Format, Layers, Schemes, takes_options
from kvdelta.analysis.cli.starting import note, say
from kvdelta.harness.options import Options
from kvdelta.harness.tasks.levels import LADDERS
from kvdelta.harness.tasks.options import DEPTHS, SEARCHED, TaskOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvdelta.harness.records.tasks import SampleRecord, TaskRecord

tasking = typer.Typer()
ITS_OWN = ("until_se", "windows", "window_length", "score_length", "stride", "batch")
"""Flags that follow from tasks and lengths."""

By = Annotated[Literal["task", "depth"], typer.Option("--by", help="tables by task and length, or also by depth")]


@tasking.command("tasks")
@takes_options(without=(*ITS_OWN, "retry_failed"), rows=True)
def tasks(
    options: Options,
    scheme: Schemes = None,
    cache: Caches = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help=f"{', '.join(LADDERS)}; repeatable; default: all of them"),
    ] = None,
    task_file: Annotated[
        str | None,
        typer.Option(
            "--task-file",
            metavar="FILE",
            help="your own: JSON lines of context, question and answer, or answers (a list)",
        ),
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option("--length", help="tokens of the context; repeatable; default: 1024")
    ] = None,
    depths: Annotated[
        int, typer.Option(help="places that what is asked for is put at, from beginning to end")
    ] = DEPTHS,
    samples: Annotated[
        int, typer.Option(help="of each task and length, each with a context of its own: the unit of all intervals")
    ] = 20,
    difficulty: Annotated[
        str,
        typer.Option(
            metavar="auto|1|2|…",
            help="a level, or auto: where exact matches 20 to 95 %, by samples that are not scored",
        ),
    ] = "auto",
    search: Annotated[int, typer.Option(help="samples that a level is tried on")] = SEARCHED,
    layers: Layers = None,
    by: By = "task",
    format: Format = "table",
) -> int:
    """Does a scheme lose facts? Needles, variables, frequent words and pairs of keys and values, asked for over the quantized context."""
    from kvdelta.harness.caches.specs import canonical

    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    how = TaskOptions(
        tuple(task) if task else None, tuple(length or [1024]), depths, samples, difficulty, search, task_file
    )
    how.options(options)
    if task_file is not None:
        from kvdelta.harness.tasks.task_file import read_task_file

        read_task_file(task_file)
    from kvdelta.harness.records.provenance import versions
    from kvdelta.harness.subject.imports import import_quickly

    versions()
    import_quickly()
    from kvdelta.analysis.cli import terminal
    from kvdelta.harness.caches.contenders import contenders_of
    from kvdelta.harness.caches.foreign import user_cache
    from kvdelta.harness.caches.variants import by_layers
    from kvdelta.harness.tasks.running import DEFAULT_SCHEMES, run_tasks

    contenders = contenders_of(
        [*(scheme or DEFAULT_SCHEMES), *(user_cache(one, options.time_limit) for one in cache or [])], note
    )
    contenders = by_layers(contenders, layers or ["full"])
    record, folder = run_tasks(
        contenders, options, how, on_sample=terminal.counted(), on_note=note, on_scored=log_sample
    )
    log_rows(record, folder)
    note(f"record: {folder}")
    return show_tasks(folder, format, by)


def log_sample(sample: "SampleRecord", labels: "Sequence[str]") -> None:
    """For --log-json: nats a token of the answer, and whether it matches, of each scheme."""
    for label, nll, match in zip(labels, sample.nll, sample.match, strict=True):
        place = {"task": sample.task, "length": sample.length, "sample": sample.number}
        log.event("scored", **place, scheme=label, nll=nll / sample.count, match=match)


def log_rows(record: "TaskRecord", folder: Path) -> None:
    from kvdelta.analysis.reading.rows import plain
    from kvdelta.analysis.reading.tasks import task_rows

    for row in plain(task_rows(record)):
        log.event("row", folder=str(folder), **row)


def show_tasks(folder: Path, format: str, by: str = "task") -> int:
    """Print saved tasks; the exit code that their audit asks for."""
    from kvdelta.analysis.cli.output import show_rows
    from kvdelta.analysis.cli.runs import report_failures
    from kvdelta.analysis.reading import task_tables, tasks
    from kvdelta.harness.records.tasks import load_tasks
    from kvdelta.schemes.errors import UserError

    record = load_tasks(folder)
    if record.status != "complete":
        raise UserError(f"{folder} is not complete; give its command again to go on: {record.command}")
    rows = [*tasks.task_rows(record), *(tasks.depth_rows(record) if by == "depth" else [])]
    shown = task_tables.titled_tables(record)
    if by == "depth":
        shown |= {f"{name}; by depth": table for name, table in task_tables.titled_tables(record, True).items()}
    show_rows(record, rows, shown, format, task_tables.LEGEND if record.samples else "", task_tables.heading(record))
    if format in ("table", "md") and (lines := task_tables.notes(record)):
        say("", *lines, format=format)
    return report_failures(record)
