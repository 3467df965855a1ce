"""Set up a comparison: model, text, windows, contenders and run folder; then hand over to the runner."""

import json
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from harness import sharding, stopping
from harness.batching import batch_size, fused_kernels
from harness.caches.contenders import Contender, contenders_of
from harness.controls import floor_of
from harness.leaks import check_texts
from harness.options import Options
from harness.passes import Passes
from harness.processes import Processes, processes
from harness.records.provenance import host, open_folder
from harness.records.run import RUN_FILE, Run, Settings, load_each, load_run, save_run
from harness.records.writing import write_file
from harness.runner import Progress, Runner
from harness.settings import header_of, settings_of
from harness.subject.prepared import Subject, prepare
from harness.subject.probing import check_continues
from harness.subject.windows import Window
from schemes.errors import UserError

DEFAULT_SCHEMES = ("exact", "int8", "int4", "hqq8", "hqq4", "kivi4", "kivi2")


def compare(
    schemes: Sequence[str | Contender] = DEFAULT_SCHEMES,
    options: Options | None = None,
    *,
    subject: Subject | None = None,
    progress: Progress | None = None,
) -> tuple[Run, Path]:
    """Score schemes on the same windows; the record and its folder.

    schemes: specs such as "kivi:bits=2", contenders, or both; exact is added where it is not among them. subject: what is already loaded.
    A foreign cache that raises, and any that gives NaN or infinite logits, fails its own row: the record says why. A folder with the finished windows of the same settings is continued, a complete one is read. UserError: bad
    input, an output folder that holds another run, NaN or infinite logits of the exact cache.

    In a program that torchrun or accelerate started, all its processes call this with the same arguments, share the windows and
    get the same record.
    """
    options = options or Options()
    progress = progress or Progress()
    contenders = contenders_of(schemes, progress.on_note)
    subject = subject or prepare(options)
    model = subject.loaded.model
    for contender in contenders:
        contender.check(model, options.window_length - options.score_length)
    check_texts(contenders, options, subject)
    if options.protocol != "single-pass" and options.step != 1:
        check_continues(model)
    settings = settings_of(options, subject, [contender.name for contender in contenders])
    if settings.until_se is not None and not settings.independent:
        raise UserError(
            f"until_se needs an error over windows, and windows that score tokens twice have none: take a stride of "
            f"{settings.score_length - 1} or more"
        )
    together = processes()
    _check_alike(together.gather(settings))
    folder, run = together.from_first(lambda: _opened(options, settings, subject, together.size))
    if run.status == "complete":
        progress.on_note(f"{folder} holds this run already, complete; its record is printed again")
        return run, folder
    if run.windows:
        progress.on_note(f"continuing {folder}: {len(run.windows)} of {len(subject.windows)} windows are there")
    else:
        progress.on_note(
            "the first window takes longer: it also runs the controls; the first 3 measure the noise floor"
        )
    runner = Runner(Passes(model, contenders), subject.loaded.name, run, folder, progress)
    started = time.perf_counter()
    by_index = {window.index: window for window in subject.windows}
    windows = [by_index[index] for index in stopping.visits(settings)]
    with fused_kernels(len(windows) - len(run.windows), progress.on_note):
        _score(runner, windows, together)
    run = runner.run
    if run.noise_floor:  # of the windows that there are, not of those that there might have been
        run.noise_floor = floor_of(run.noise_floor.routes, len(run.windows) * (settings.score_length - 1))
    tails = np.quantile(load_each(folder, run, "kl"), 0.999, axis=1)
    for contender, tail in zip(run.contenders, tails, strict=True):
        contender.kl_999 = float(tail) if contender.error is None else None
    run.status = "complete"
    seconds = _joined(together.gather(runner.passes.timings))
    wall = round(time.perf_counter() - started, 3)
    timings = {"host": host(), "processes": together.size, "wall": wall, "seconds": seconds}
    if together.rank == 0:
        save_run(run, folder)
        write_file(folder / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    return run, folder


def _score(runner: Runner, windows: Sequence[Window], together: Processes) -> None:
    """From look to look, until one suffices."""
    begun = len(runner.run.windows)
    for count in stopping.looks(runner.run.settings):
        if count < begun:  # a run that is continued had looked
            continue
        sharding.score(runner, windows[:count], together)
        if verdict := stopping.verdict(runner.run):
            runner.run.ended = verdict
            runner.progress.on_note(verdict)
            return


def _opened(options: Options, settings: Settings, subject: Subject, processes: int) -> tuple[Path, Run]:
    """The run folder and the record in it, continued or begun."""
    folder, run = open_folder(options.out, RUN_FILE, settings, load_run)
    if run is None:
        size = batch_size(
            options.batch, subject.loaded.model, options.window_length, options.score_length, step=options.step
        )
        run = Run(**header_of(options, subject, settings), contenders=[], batch=min(size, len(subject.windows)))
        if processes > 1:  # no part may lie in a folder without a record
            save_run(run, folder)
    elif run.status == "running":
        run = sharding.with_parts(run, folder, stopping.visits(settings))
    return folder, run


def _check_alike(settings: Sequence[Settings]) -> None:
    """UserError where processes would score something else than the first."""
    first = settings[0].model_dump()
    for rank, other in enumerate(settings):
        if differs := [name for name, value in other.model_dump().items() if value != first[name]]:
            raise UserError(
                f"process {rank} of {len(settings)} differs from the first in {', '.join(differs)}; start all processes on "
                "machines with the same code, files and kind of GPU"
            )


def _joined(timings: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Of all processes, one after another."""
    return {name: [x for one in timings for x in one.get(name, [])] for name in dict.fromkeys(chain(*timings))}
