"""Set up a comparison: model, text, windows, contenders and run folder; then hand over to the runner."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kvdelta.harness import merging, scoring_again, sharding, stopping
from kvdelta.harness.batching import batch_size, fused_kernels
from kvdelta.harness.caches.contenders import Contender, check_heads_apart, contenders_of
from kvdelta.harness.dropping import dropped
from kvdelta.harness.leaks import check_calibrations
from kvdelta.harness.options import Options
from kvdelta.harness.passes import Passes
from kvdelta.harness.processes import Processes, processes
from kvdelta.harness.records.provenance import open_folder
from kvdelta.harness.records.run import NoiseFloor, Run, Settings, named
from kvdelta.harness.records.run_folder import RUN_FILE, Lost, load_whole, parts_of, save_run
from kvdelta.harness.records.timings import Timings, load_timings, save_timings
from kvdelta.harness.records.tokens import set_tails
from kvdelta.harness.records.writer import holding
from kvdelta.harness.runner import Progress, Runner
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.prepared import Subject, prepare
from kvdelta.harness.subject.probing import check_continues
from kvdelta.harness.subject.spreading import check_same_logits, spread_over
from kvdelta.harness.subject.windows import Window
from kvdelta.harness.time_limit import check_time_limit
from kvdelta.schemes.errors import UserError

DEFAULT_SCHEMES = ("exact", "int8", "int4", "hqq8", "hqq4", "kivi4", "kivi2")


@dataclass(frozen=True)
class Work:
    """What the runs by several protocols share. hold: holds a folder until they end."""

    contenders: Sequence[Contender]
    subject: Subject
    together: Processes
    progress: Progress
    hold: Callable[[Path], None]


def compare(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    *,
    subject: Subject | None = None,
    progress: Progress | None = None,
) -> tuple[Run, Path]:
    """Score schemes on the same windows; the record and its folder.

    schemes: specs such as "kivi:bits=2", contenders, or both; exact is added where it is not among them. subject: what is already loaded.
    What raises, or gives NaN or infinite logits, fails its own row, but for exact: the record says why. A folder with the finished
    windows of the same settings is continued, a complete one is read. UserError: bad input, an output folder that holds another run, NaN or infinite logits of the exact cache.

    In a program that torchrun or accelerate started, all its processes call this with the same arguments, share the windows, or with
    tensor_parallel the model's heads, and get the same record.
    """
    return compare_protocols(schemes, [options or Options()], subject=subject, progress=progress)[0]


def compare_protocols(
    schemes: Sequence[str | Contender],
    protocols: Sequence[Options],
    *,
    subject: Subject | None = None,
    progress: Progress | None = None,
) -> list[tuple[Run, Path]]:
    """As `compare`, by several protocols in one go: each batch of windows is prefilled once, and each protocol has a record
    of its own, as if it had been compared alone, with an exact cache of its own.

    protocols: as `Options.by` makes them: they differ in protocol, step and folder.
    """
    with ExitStack() as held:
        return _compared(schemes, protocols, subject, progress or Progress(), held)


def _compared(
    schemes: Sequence[str | Contender],
    protocols: Sequence[Options],
    subject: Subject | None,
    progress: Progress,
    held: ExitStack,
) -> list[tuple[Run, Path]]:
    """held: releases the run folders."""
    contenders = contenders_of(schemes, progress.on_note)  # a typing error is said before a model is loaded
    drop = dropped(protocols[0], contenders)
    if protocols[0].time_limit is not None:
        check_time_limit()
    if protocols[0].tensor_parallel:
        check_heads_apart(contenders)
    subject = subject or prepare(protocols[0])
    model = subject.loaded.model
    together = processes()
    spread = together if spread_over(model) > 1 else None
    if spread:
        check_heads_apart(contenders)
        check_same_logits(model, spread.gather)
    _check(contenders, protocols, subject)
    settings = [settings_of(options, subject, [contender.name for contender in contenders]) for options in protocols]
    for one in settings:
        if one.until_se is not None and not one.independent:
            raise UserError(
                f"until_se needs an error over windows, and windows that score tokens twice have none: take a stride of "
                f"{one.score_length - 1} or more"
            )
        _check_alike(together.gather(one))
    size = max(_batch_size(options, subject) for options in protocols)
    if spread:
        size = min(spread.gather(size))
    hold = holding(held, protocols[0].wait, progress.on_note)
    work = Work(contenders, subject, together, progress, hold)
    opened = [_opened(work, options, one, size, drop) for options, one in zip(protocols, settings, strict=True)]
    left: list[Runner] = []
    for folder, run, spent in opened:
        if run.status == "complete":
            progress.on_note(f"{folder} holds this run already, complete; its record is printed again")
            continue
        if run.windows:
            progress.on_note(f"continuing {folder}: {len(run.windows)} of {len(subject.windows)} windows are there")
        shown = progress.of_part(len(left), len(contenders), named(run.settings) if len(protocols) > 1 else "")
        left.append(
            Runner(
                Passes(model, contenders, spread=spread),
                subject.loaded.name,
                run,
                folder,
                shown,
                spent,
                dropped=drop,
                time_limit=protocols[0].time_limit,
            )
        )
    if left:
        _finish(work, left)
    done = {runner.folder: runner.run for runner in left}
    runs = [(done.get(folder, run), folder) for folder, run, _ in opened]
    if protocols[0].retry_failed:
        runs = [
            (_retried(work, options, run, folder, drop), folder)
            for (run, folder), options in zip(runs, protocols, strict=True)
        ]
    return runs


def _finish(work: Work, left: Sequence[Runner]) -> None:
    """Score what is left of runs by several protocols."""
    subject, together, progress = work.subject, work.together, work.progress
    if not any(runner.run.windows for runner in left):
        progress.on_note(
            "the first window takes longer: it also runs the controls; the first 3 measure the noise floor"
        )
    started = time.perf_counter()
    by_index = {window.index: window for window in subject.windows}
    windows = [by_index[index] for index in stopping.visits(left[0].run.settings)]
    with fused_kernels(len(windows) - min(len(runner.run.windows) for runner in left), progress.on_note):
        _score(left, windows, together, progress)
    seconds = time.perf_counter() - started
    for runner in left:
        _completed(runner, together, seconds)


def _check(contenders: Sequence[Contender], protocols: Sequence[Options], subject: Subject) -> None:
    """UserError, before any window is scored, for what a contender or the model cannot do."""
    model, options = subject.loaded.model, protocols[0]
    for contender in contenders:
        contender.check(model, options.window_length - options.score_length)
    check_calibrations(contenders, options, subject)
    if any(one.protocol != "single-pass" and one.step != 1 for one in protocols):
        check_continues(model)


def _score(runners: Sequence[Runner], windows: Sequence[Window], together: Processes, progress: Progress) -> None:
    """From look to look, until one suffices. A run that was stopped while others were further is brought to where they are."""
    have = [{window.index for window in runner.run.windows} for runner in runners]
    furthest = set.union(*have)
    for runner, mine in zip(runners, have, strict=True):
        if furthest - mine:
            sharding.score([runner], [window for window in windows if window.index in furthest], together)
    begun = len(furthest)
    for count in stopping.looks(runners[0].run.settings):
        if count < begun:  # a run that is continued had looked
            continue
        sharding.score(runners, windows[:count], together)
        verdicts = [stopping.verdict(runner.run) for runner in runners]
        if all(verdicts):
            for runner, verdict in zip(runners, verdicts, strict=True):
                runner.run.ended = verdict
                runner.progress.on_note(verdict or "")
            return


def _completed(runner: Runner, together: Processes, wall: float) -> None:
    """What is known once all windows are scored; the record is whole. wall: seconds of all protocols."""
    run, folder = runner.run, runner.folder
    if run.noise_floor:  # of the windows that there are, not of those that there might have been
        run.noise_floor = NoiseFloor.of(run.noise_floor.routes, len(run.windows) * (run.settings.score_length - 1))
    set_tails(run, folder)
    run.status = "complete"
    mine = runner.passes.watch.seconds
    seconds = [mine] if runner.passes.spread else together.gather(mine)
    if together.rank == 0:
        save_timings(
            Timings.joined([runner.spent, *(Timings(0, one) for one in seconds), Timings(wall, {})]),
            folder,
            together.size,
        )
        save_run(run, folder)


def _batch_size(options: Options, subject: Subject) -> int:
    return batch_size(
        options.batch, subject.loaded.model, options.window_length, options.score_length, step=options.step
    )


def _opened(
    work: Work, options: Options, settings: Settings, size: int, drop: Collection[str]
) -> tuple[Path, Run, Timings]:
    """The run folder, the record in it, continued or begun with so many windows at once, and what was spent on it before. It is on
    disk before a window is scored: whatever stops the run then, the folder holds one. What is damaged in it is scored again."""
    folder, run, lost, spent = work.together.from_first(partial(_found, options, settings, work.hold))
    if run and lost:
        run = _made_whole(work, options, run, folder, lost, drop)

    def begun() -> Run:
        if run is None:
            new = Run(
                **header_of(options, work.subject, settings), contenders=[], batch=min(size, len(work.subject.windows))
            )
            save_run(new, folder)
            return new
        if not options.retry_failed:  # what a stopped command left there is of no use to this one
            shutil.rmtree(folder / scoring_again.FOLDER, ignore_errors=True)
        if run.status == "complete":
            return run
        all = sharding.with_parts(run, folder, stopping.visits(settings))
        save_timings(spent, folder, work.together.size)
        save_run(all, folder)
        return all

    return folder, work.together.from_first(begun), spent


def _found(
    options: Options, settings: Settings, hold: Callable[[Path], None]
) -> tuple[Path, Run | None, list[Lost], Timings]:
    """The folder, what is whole of the record in it, what is not, and what was spent on a run that is to go on."""
    lost: list[Lost] = []

    def load(folder: Path) -> Run:
        found = load_whole(folder)
        lost.extend(found.lost)
        return found.run

    folder, run = open_folder(options.out, RUN_FILE, settings, load, hold)
    goes_on = run is not None and run.status == "running"
    spent = load_timings(folder, [RUN_FILE, *parts_of(folder)]) if goes_on else Timings()
    return folder, run, lost, spent


def _made_whole(
    work: Work, options: Options, run: Run, folder: Path, lost: Sequence[Lost], drop: Collection[str]
) -> Run:
    """A run with its damaged windows scored again, in the batches that they were in, but for rows that have failed or are dropped."""
    order, batches = scoring_again.places(run, lost)
    for row, contender in zip(run.contenders, work.contenders, strict=False):
        if contender.label in drop and not row.error:
            row.error = "dropped where a damaged window was scored again (--drop)"
    rows = [one for one, row in zip(work.contenders, run.contenders, strict=False) if not row.error]
    work.progress.on_note(f"{folder} is damaged, and that is scored again: {'; '.join(map(str, lost))}")
    with _again(work, options, folder, rows, batches) as parts:
        return work.together.from_first(lambda: merging.with_windows(run, folder, parts, order))


def _retried(work: Work, options: Options, run: Run, folder: Path, drop: Collection[str]) -> Run:
    """A run whose rows that failed were scored again, beside exact; but for those that are dropped now."""
    rows = zip(work.contenders, run.contenders, strict=True)
    failed = [one for one, record in rows if record.error and one.label not in drop]
    if not failed:
        return run
    work.progress.on_note(f"scored again: {', '.join(one.label for one in failed)}")
    batches = [[window.index for window in batch] for batch in merging.batches_of(run)]
    with _again(work, options, folder, [work.contenders[0], *failed], batches) as parts:
        return work.together.from_first(lambda: merging.with_rows(run, folder, parts))


@contextmanager
def _again(
    work: Work, options: Options, folder: Path, contenders: Sequence[Contender], batches: Sequence[Sequence[int]]
) -> Iterator[list[merging.Part]]:
    """Batches of a run scored once more, by runs within its folder; a command that is stopped goes on with them. They are removed
    afterwards."""
    by_index, where = {window.index: window for window in work.subject.windows}, folder / scoring_again.FOLDER
    asked = []
    for i, group in enumerate(scoring_again.alike(batches)):
        some = replace(work.subject, windows=[by_index[index] for batch in group for index in batch])
        out, batch = str(where / str(i)), str(len(group[0]))
        options = replace(options, out=out, until_se=None, batch=batch, drop=None, retry_failed=False)
        asked.append((options, some, settings_of(options, some, [one.name for one in contenders])))
    work.together.from_first(partial(scoring_again.clear, where, [(one.out, settings) for one, _, settings in asked]))
    progress = Progress(on_note=work.progress.on_note)
    parts = []
    for one, some, _ in asked:
        run, at = compare(contenders, one, subject=some, progress=progress)
        parts.append(merging.Part(run, at))
    yield parts
    work.together.from_first(lambda: shutil.rmtree(where))


def _check_alike(settings: Sequence[Settings]) -> None:
    """UserError where processes would score something else than the first."""
    first = settings[0].model_dump()
    for rank, other in enumerate(settings):
        if differs := [name for name, value in other.model_dump().items() if value != first[name]]:
            raise UserError(
                f"process {rank} of {len(settings)} differs from the first in {', '.join(differs)}; start all processes on "
                "machines with the same code, files and kind of GPU"
            )
