"""A run as the command line makes it: with progress for people, a summary in its record, and its audit reported.

Light: `show` ends here too, without a model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli import terminal
from analysis.cli.ending import AUDIT_FAILED, ROW_FAILED
from analysis.cli.starting import note
from analysis.reading.rows import plain
from analysis.reading.summary import summarize
from harness.options import Options
from harness.processes import rank
from harness.records.run import Run, load_each, save_run

if TYPE_CHECKING:
    from harness.caches.contenders import Contender
    from harness.subject.prepared import Subject


def make_run(contenders: "Sequence[Contender]", options: Options, subject: "Subject") -> tuple[Run, Path]:
    """Run, with progress on stderr."""
    from harness import comparison

    progress = terminal.progress(len(subject.windows), len(contenders))
    run, folder = comparison.compare(contenders, options, subject=subject, progress=progress)
    run.summary = plain(summarize(run, nll=load_each(folder, run, "nll")))
    if rank() == 0:
        save_run(run, folder)
    note(f"record: {folder}")
    return run, folder


def report_failures(run: Run) -> int:
    """Say which rows have no score and which cannot be believed; the exit code."""
    failed = {contender.label: contender.error for contender in run.contenders if contender.error}
    doubtful = {label: reasons for label, reasons in run.audit.failures.items() if label not in failed}
    for label, error in failed.items():
        note(f"failed: {label}: {error}")
    for label, reasons in doubtful.items():
        note(f"audit failed: {label}: {'; '.join(reasons)}")
    return worst([AUDIT_FAILED] * bool(doubtful) + [ROW_FAILED] * bool(failed))


def worst(codes: Sequence[int]) -> int:
    """A failed audit, where there is one: numbers that mislead are worse than none."""
    return AUDIT_FAILED if AUDIT_FAILED in codes else max(codes, default=0)
