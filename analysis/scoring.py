"""Score contenders with progress for people; the record gets its summary."""

from collections.abc import Sequence
from pathlib import Path

from analysis.summary import summarize
from analysis.tables import finite
from harness import comparison, records, terminal
from harness.comparison import Subject
from harness.contenders import Contender
from harness.options import Options
from harness.records import Run
from harness.starting import note

AUDIT_FAILED = 3


def score(contenders: Sequence[Contender], options: Options, subject: Subject) -> tuple[Run, Path]:
    """Run, with progress on stderr."""
    progress = terminal.progress(len(subject.windows), len(contenders))
    run, folder = comparison.compare(contenders, options, subject=subject, progress=progress)
    run.summary = finite(summarize(run, nll=records.load_nll(folder, run)))
    records.save(run, folder)
    note(f"record: {folder}")
    return run, folder


def verdict(run: Run) -> int:
    """Say which rows cannot be believed; the exit code."""
    for label, reasons in run.audit.failures.items():
        note(f"audit failed: {label}: {'; '.join(reasons)}")
    return AUDIT_FAILED if run.audit.failures else 0
