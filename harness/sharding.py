"""Runs by several processes: each scores whole batches, and the first joins what they have into the record.

The batches are those of one process, so their sums are too. The first process takes the batches that the controls need.
While a run goes, each of the others keeps its part beside the record, and what a run that was stopped left is joined first.
Where processes share the model's heads all score all batches, and the first keeps the record.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from kvdelta.harness.controls import FLOOR_WINDOWS
from kvdelta.harness.failures import blank_after_failure, failures
from kvdelta.harness.merging import batches_of
from kvdelta.harness.processes import OthersGone, Processes, of_others
from kvdelta.harness.records.run import Audit, Run
from kvdelta.harness.records.run_folder import PARTS, load_whole, parts_of, save_run
from kvdelta.harness.records.tokens import forget_failed, has_tokens
from kvdelta.harness.runner import Runner
from kvdelta.harness.runner import score as score_batches
from kvdelta.harness.subject.windows import Window


def score(runners: Sequence[Runner], windows: Sequence[Window], processes: Processes) -> None:
    """Score those of the windows that the records lack, which have the same; afterwards each `runner.run` is the same in every process.

    runners: one a protocol. windows: in the order in which they are scored, from the first of the run on.
    """
    done = {window.index for window in runners[0].run.windows}
    left = [window for window in windows if window.index not in done]
    if processes.size == 1:
        score_batches(runners, left)
        return
    if runners[0].passes.spread:
        _score_together(runners, left, processes)
        return
    size = min(runner.run.batch for runner in runners)
    batches = [left[i : i + size] for i in range(0, len(left), size)]
    if processes.rank:
        for runner in runners:
            runner.run = runner.run.model_copy(deep=True, update={"windows": [], "batches": [], "audit": Audit()})
            runner.file, runner.passes.with_controls = f"{PARTS}/{processes.rank}.json", False
            save_run(runner.run, runner.folder, runner.file)
    controlled = -(-max(0, FLOOR_WINDOWS - len(done)) // size)
    for at, batch in processes.deal(batches, first=controlled):
        for runner in runners:
            runner.elsewhere = len(done) + at * size - len(runner.run.windows)
        score_batches(runners, batch)
    for runner in runners:
        _join(runner, [window.index for window in windows], processes)


def _score_together(runners: Sequence[Runner], windows: Sequence[Window], processes: Processes) -> None:
    """All processes go through all batches, each with its heads; the first keeps them."""
    for runner in runners:
        runner.keeps = processes.rank == 0
    try:
        score_batches(runners, windows)
    except RuntimeError as error:
        if of_others(error):
            raise OthersGone from error
        raise
    kept = processes.from_first(lambda: [runner.run for runner in runners])
    for runner, run in zip(runners, kept, strict=True):
        runner.run = run


def _join(runner: Runner, order: Sequence[int], processes: Processes) -> None:
    first, *parts = processes.gather(runner.run)
    runner.run = processes.from_first(lambda: _kept(joined(first, parts, order), runner.folder))


def with_parts(run: Run, folder: Path, order: Sequence[int]) -> Run:
    """A record with what the processes of a stopped run left beside it. Before the first process has the controls it is
    left out, and scored again."""
    if len(run.windows) < min(FLOOR_WINDOWS, len(order)):
        return run
    found = [load_whole(folder, part) for part in parts_of(folder)]
    parts = [part.run for part in found if part.run.settings == run.settings and not part.lost]
    return _kept(joined(run, parts, order), folder) if parts else run


def joined(run: Run, parts: Sequence[Run], order: Sequence[int]) -> Run:
    """The record with the windows of parts, in the order of one process. A part whose windows it has is left out."""
    have = {window.index for window in run.windows}
    runs = [run, *(part for part in parts if not have & {window.index for window in part.windows})]
    position = {index: i for i, index in enumerate(order)}
    batches = sorted((batch for one in runs for batch in batches_of(one)), key=lambda batch: position[batch[0].index])
    whole = run.model_copy(deep=True)
    whole.windows = [window.model_copy(deep=True) for batch in batches for window in batch]
    whole.batches = [len(batch) for batch in batches]
    whole.batch = min(one.batch for one in runs)
    for part in runs[1:]:
        for label, layers in part.audit.reads.items():
            whole.audit.add_reads(label, layers)
    for row, failed in blank_after_failure(whole).items():
        owner = next(one for one in runs if any(window.index == failed for window in one.windows))
        whole.contenders[row].error = owner.contenders[row].error
    whole.audit.failures = failures(whole)
    return whole


def _kept(run: Run, folder: Path) -> Run:
    for window in run.windows if has_tokens(folder) else ():
        forget_failed(folder, window)
    save_run(run, folder)
    shutil.rmtree(folder / PARTS, ignore_errors=True)  # none, in a run of one process
    return run
