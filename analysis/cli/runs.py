"""A run as the command line makes it: with progress for people, a summary in its record, and its audit reported.

Light: `show` ends here too, without a model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvdelta.analysis.cli import log, terminal
from kvdelta.analysis.cli.ending import AUDIT_FAILED, ROW_FAILED
from kvdelta.analysis.cli.output import FOR_PROGRAMS, print_rows
from kvdelta.analysis.cli.starting import note, say
from kvdelta.analysis.reading import protocol_tables, protocols, run_tables, summary
from kvdelta.analysis.reading.rows import plain
from kvdelta.analysis.reading.summary import summarize
from kvdelta.analysis.reading.tables import as_markdown
from kvdelta.harness.options import Options
from kvdelta.harness.processes import rank
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.run_folder import save_run
from kvdelta.harness.records.tokens import has_tokens, load_each

if TYPE_CHECKING:
    from kvdelta.harness.caches.contenders import Contender
    from kvdelta.harness.records.tasks import TaskRecord
    from kvdelta.harness.subject.prepared import Subject


def make_run(contenders: "Sequence[Contender]", options: Options, subject: "Subject") -> tuple[Run, Path]:
    """Run, with progress on stderr."""
    return make_runs(contenders, [options], subject)[0]


def make_runs(contenders: "Sequence[Contender]", ways: Sequence[Options], subject: "Subject") -> list[tuple[Run, Path]]:
    """Run by each protocol, with progress on stderr."""
    from kvdelta.harness import comparison

    progress = terminal.progress(len(subject.windows), len(contenders) * len(ways))
    runs = comparison.compare_protocols(contenders, ways, subject=subject, progress=progress)
    for run, folder in runs:
        keep_summary(run, folder)
        note(f"record: {folder}")
    return runs


def keep_summary(run: Run, folder: Path) -> None:
    """The rows of its table in the record."""
    run.summary = plain(summarize(run, nll=load_each(folder, run, "nll") if has_tokens(folder) else None))
    if rank() == 0:
        save_run(run, folder)
    for row in run.summary:
        log.event("row", folder=str(folder), protocol=run.settings.protocol, step=run.settings.step, **row)


def show_run(run: Run, folder: Path, format: str, baseline: str | None = None, sort: str = "run") -> None:
    """The table of one run on stdout."""
    position = summary.find(run, baseline) if baseline else 0
    nll = load_each(folder, run, "nll") if format == "json" and has_tokens(folder) else None
    rows, position = run_tables.in_order(summarize(run, baseline, nll), position, sort)
    if format == "table":
        say(*run_tables.heading(run))
        terminal.print_table(*run_tables.cells(rows, position))
        print(run_tables.legend(run))
        if lines := run_tables.notes(rows):
            say("", *lines)
    elif format == "parquet":
        print_rows(plain(rows), format)
    else:
        print(run_tables.as_text(run, rows, position, format), end="")


def show_protocols(runs: Sequence[Run], format: str) -> None:
    """The table of one comparison by several protocols on stdout."""
    found = protocols.protocol_rows(runs)
    if format in FOR_PROGRAMS:
        rows = [row for line in found for row in line]
        print_rows(plain(rows), format)
        return
    say(*run_tables.heading_of_several(runs), format=format)
    for shown in protocol_tables.protocol_tables(found):
        if format == "md":
            print("\n" + as_markdown(*shown), end="")
        else:
            terminal.print_table(*shown)
    if format == "table":
        print(protocol_tables.LEGEND)
    notes = protocol_tables.order_notes(found)
    if notes:
        say("", *notes, format=format)


def report_failures(run: "Run | TaskRecord") -> int:
    """Say which rows have no score and which cannot be believed; the exit code."""
    failed = {contender.label: contender.error for contender in run.contenders if contender.error}
    doubtful = {label: reasons for label, reasons in run.audit.failures.items() if label not in failed}
    code = report_failed(failed)
    for label, reasons in doubtful.items():
        note(f"audit failed: {label}: {'; '.join(reasons)}")
    return worst([AUDIT_FAILED] * bool(doubtful) + [code])


def report_failed(failed: Mapping[str, str]) -> int:
    """Say which schemes have no figures, and why, by label; the exit code."""
    for label, error in failed.items():
        note(f"failed: {label}: {error}")
    return ROW_FAILED if failed else 0


def worst(codes: Sequence[int]) -> int:
    """A failed audit, where there is one: numbers that mislead are worse than none."""
    return AUDIT_FAILED if AUDIT_FAILED in codes else max(codes, default=0)
