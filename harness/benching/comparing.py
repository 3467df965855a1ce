"""What a window more costs a comparison, in windows of the exact cache alone; what its controls cost; what steps cost."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kvdelta.harness.batching import batch_size
from kvdelta.harness.benching.turns import Parts, Turns
from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.options import Options
from kvdelta.harness.passes import Passes
from kvdelta.harness.records.bench import AGAIN, BASELINE, CONTROLS, STEPWISE, TWO_PASS, Times
from kvdelta.harness.records.run import Run
from kvdelta.harness.runner import Runner, score
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.prepared import Subject


def time_comparison(
    contenders: Sequence[Contender],
    options: Options,
    subject: Subject,
    step: int | None,
    turns: Turns,
    on_note: Callable[[str], None] = lambda text: None,
) -> list[Times]:
    """Seconds a window of real runs of one batch, record and all, in turn: the exact cache alone (of which also "prefill" and
    "suffix"), all contenders by two passes, those stepwise, all with the first window's controls (of which also
    "controls"), exact again. step: tokens a forward; None leaves steps out."""
    on_note(f"{len(contenders)} rows, {turns.rounds} round{'s' * (turns.rounds > 1)} of whole windows")
    run = partial(_of_one_batch, subject=subject)
    whole = replace(options, protocol="two-pass", step=None)
    tasks: dict[str, Callable[[], Parts]] = {
        BASELINE: partial(run, contenders[:1], whole),
        TWO_PASS: partial(run, contenders, whole),
        CONTROLS: partial(run, contenders, whole, with_controls=True),
    }
    if step is not None:
        tasks[f"{STEPWISE} {step}"] = partial(run, contenders, replace(options, protocol="stepwise", step=step))
    tasks[AGAIN] = tasks[BASELINE]
    return turns.take(tasks, options.window_length - options.score_length, needed=tasks)


def _of_one_batch(
    contenders: Sequence[Contender], options: Options, *, subject: Subject, with_controls: bool = False
) -> Parts:
    model = subject.loaded.model
    size = batch_size(options.batch, model, options.window_length, options.score_length, step=options.step)
    windows = subject.windows[:size]
    few = replace(subject, windows=windows)
    settings = settings_of(options, few, [contender.name for contender in contenders])
    run = Run(**header_of(options, few, settings), contenders=[], batch=len(windows))
    passes = Passes(model, contenders, with_controls)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        score([Runner(passes, subject.loaded.name, run, Path(folder))], windows)
        seconds = time.perf_counter() - started
    timings, count = passes.watch.seconds, len(windows)
    controls = sum(sum(taken) for name, taken in timings.items() if name.startswith("control"))
    beside = {"controls": controls} if with_controls else {}
    parts = {"prefill": timings["prefill"], "suffix": timings["exact score"], "scoring": timings["scoring"]}
    return {"window": seconds / count, **beside, **{name: sum(taken) / count for name, taken in parts.items()}}
