"""`kvdelta lm-eval`: tasks of lm-evaluation-harness over a quantized cache. Light: imports what it needs in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kvdelta.analysis.cli.flags import Format, Schemes, takes_options
from kvdelta.analysis.cli.starting import note, say
from kvdelta.harness.evaluation.options import EvaluationOptions
from kvdelta.harness.options import Options

if TYPE_CHECKING:
    from kvdelta.harness.records.evaluation import TaskRecord

evaluating = typer.Typer()
NOT_OF_TASKS = (
    "until_se", "protocol", "step", "text", "windows", "window_length", "score_length", "stride", "batch", "bos", "same_text",
)  # fmt: skip
"""Flags of windows, which tasks have not."""
Flips = Annotated[
    bool,
    typer.Option(
        "--flips", help="below the tables, or with json and csv in their place, the items whose answer differs"
    ),
]


@evaluating.command("lm-eval")
@takes_options(without=NOT_OF_TASKS)
def lm_eval(
    options: Options,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", metavar="NAME[,NAME…]", help="tasks, groups or tags of lm-evaluation-harness; repeatable"
        ),
    ] = None,
    scheme: Schemes = None,
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", metavar="FOLDER", help="a folder with the YAML files of tasks of your own"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="items of each task, from the first; default: all")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", help="solved items that are shown before each; default: as the task says"),
    ] = None,
    feed_last: Annotated[
        int,
        typer.Option(
            "--feed-last",
            metavar="K",
            help="feed the last K tokens of each context after it was stored, so that they read it",
        ),
    ] = 0,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="prompts as the model's chat template has them")
    ] = False,
    flips: Flips = False,
    format: Format = "table",
) -> int:
    """Answer tasks of lm-evaluation-harness from contexts that schemes store: paired with exact, item by item."""
    names = [name.strip() for given in tasks or [] for name in given.split(",") if name.strip()]
    how = EvaluationOptions(names, include_path, limit, num_fewshot, feed_last, apply_chat_template)
    from kvdelta.harness.caches.specs import canonical

    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    from kvdelta.harness.evaluation.library import library_version
    from kvdelta.harness.records.provenance import versions
    from kvdelta.harness.subject.imports import import_quickly

    versions()
    library_version()
    import_quickly()
    from kvdelta.analysis.cli import log, terminal
    from kvdelta.analysis.reading.evaluations import figures
    from kvdelta.analysis.reading.rows import plain
    from kvdelta.harness.comparison import DEFAULT_SCHEMES
    from kvdelta.harness.evaluation.evaluating import evaluate

    record, folder = evaluate(
        scheme or DEFAULT_SCHEMES, options, how, on_note=note, on_answer=terminal.counted(), on_scored=_log_scored
    )
    note(f"record: {folder}")
    for row in plain(figures(record)):
        log.event("row", folder=str(folder), **row)
    return show_evaluation(folder, format, flips)


def _log_scored(task: "TaskRecord") -> None:
    from kvdelta.analysis.cli import log

    for row in task.rows:
        log.event("scored", task=task.name, scheme=row.label, items=len(task.items), failures=row.failures)


def show_evaluation(folder: Path, format: str, flips: bool = False) -> int:
    """Print a saved evaluation; the exit code that its audit asks for."""
    from kvdelta.analysis.cli.ending import AUDIT_FAILED
    from kvdelta.analysis.cli.output import show_rows, show_table
    from kvdelta.analysis.cli.runs import report_failed, worst
    from kvdelta.analysis.reading import evaluation_tables, evaluations
    from kvdelta.harness.records.evaluation import load_evaluation

    record = load_evaluation(folder)
    if record.status != "complete":
        left = len(record.settings.tasks) - len(record.tasks)
        note(
            f"{folder} is not complete, {left} of its tasks are left; give its command again to go on: {record.command}"
        )
    flipped = list(evaluations.flips(record)) if flips else []
    rows = flipped if flips and format not in ("table", "md") else evaluations.figures(record)
    heading, shown = evaluation_tables.heading(record), evaluation_tables.task_tables(record)
    show_rows(cast(Any, record), rows, shown, format, evaluation_tables.LEGEND, heading)
    if format in ("table", "md"):
        if flips:
            print()
            show_table("items whose answer differs from exact's", evaluation_tables.flip_table(flipped), format)
        if lines := evaluation_tables.notes(record):
            say("", *lines, format=format)
    doubtful = [(task.name, row.label, row.failures) for task in record.tasks for row in task.rows if row.failures]
    for task, label, failures in doubtful:
        note(f"audit failed: {task}, {label}: {'; '.join(failures)}")
    return worst([AUDIT_FAILED if doubtful else 0, report_failed(record.failed)])
