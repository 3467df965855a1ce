"""Set up a comparison: model, text, windows, contenders and run folder; then hand over to the runner."""

import json
from collections.abc import Sequence
from pathlib import Path

from harness.batching import batch_size
from harness.caches.contenders import Contender, contenders_of
from harness.leaks import check_texts
from harness.options import Options
from harness.records.provenance import host, open_folder
from harness.records.run import RUN_FILE, Run, load_run
from harness.records.writing import write_file
from harness.runner import Progress, Runner
from harness.settings import header_of, settings_of
from harness.subject.prepared import Subject, prepare
from harness.subject.probing import check_continues

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
    folder, run = open_folder(options.out, RUN_FILE, settings, load_run)
    if run is None:
        size = batch_size(options.batch, model, options.window_length, options.score_length)
        run = Run(**header_of(options, subject, settings), contenders=[], batch=min(size, len(subject.windows)))
    if run.status == "complete":
        progress.on_note(f"{folder} holds this run already, complete; its record is printed again")
        return run, folder
    if run.windows:
        progress.on_note(f"continuing {folder}: {len(run.windows)} of {len(subject.windows)} windows are there")
    runner = Runner(model, subject.loaded.name, contenders, run, folder, progress)
    run = runner.go(subject.windows)
    timings = {"host": host(), "seconds": runner.timings}
    write_file(folder / "timings.json", (json.dumps(timings, indent=1) + "\n").encode())
    return run, folder
