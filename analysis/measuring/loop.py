"""The loop of every measurement: batches of windows, each on disk before the next begins."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kvdelta.analysis.reading.selection import spans
from kvdelta.harness.batching import batch_size, fused_kernels, halved, in_batches
from kvdelta.harness.caches.contenders import SchemeContender, merged
from kvdelta.harness.leaks import check_calibrations
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.options import Options
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.records.measurement import (
    Arrays,
    Kind,
    Measurement,
    has_window,
    load_measurement,
    save_measurement,
    save_window,
)
from kvdelta.harness.records.provenance import open_folder
from kvdelta.harness.records.writer import holding
from kvdelta.harness.settings import header_of, settings_of
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.probing import check_continues, kv_shapes
from kvdelta.harness.subject.windows import Batch, Window
from kvdelta.schemes.errors import UserError

Result = TypeVar("Result")


def bound_schemes(
    specs: Sequence[str], options: Options, subject: Subject, on_note: Callable[[str], None]
) -> list[SchemeContender]:
    """The schemes to measure, bound to the model's layers; equal ones are merged with a notice. ValueError for one that
    the model or the prefix cannot use, or that was calibrated on the text; a model whose suffix cannot be scored in one
    forward."""
    schemes = merged([SchemeContender.of(spec) for spec in specs], on_note)
    model = subject.loaded.model
    for contender in schemes:
        contender.check(model, subject.windows[0].prefix_length)
    check_calibrations(schemes, options, subject)
    check_continues(model)
    return [replace(contender, scheme=contender.empty(model).scheme) for contender in schemes]


def stored_places(subject: Subject) -> tuple[list[int], list[int]]:
    """The layers that a scheme stores, and the KV heads of each. ValueError where there are none, or not equally many."""
    model = subject.loaded.model
    shapes = kv_shapes(model)
    heads = sorted({shape.heads for shape in shapes.values()})
    if len(heads) > 1:
        raise UserError(
            f"the layers of this {model.config.model_type} model have {' and '.join(map(str, heads))} KV heads; this command "
            "needs equally many in all"
        )
    return list(shapes), list(range(heads[0]))


class Failing:
    """The schemes of a measurement that have failed, and why: the others go on."""

    def __init__(self, labels: Sequence[str], on_note: Callable[[str], None]):
        self.labels, self.on_note = labels, on_note
        self.reasons: dict[str, str] = {}

    def tried(self, scheme: int, work: Callable[[], Result]) -> Result | None:
        """What the work of the scheme at this position gives; None where it raises, or another of its works has. UserError once none is
        left. What there is no memory for is tried again with fewer windows."""
        label = self.labels[scheme]
        if label in self.reasons:
            return None
        try:
            return work()
        except RAISED as error:
            if out_of_memory(error):
                raise
            self.reasons[label] = reason_of(error)
            self.on_note(f"{label} failed, the others go on: {self.reasons[label]}")
        if len(self.reasons) == len(self.labels):
            raise UserError(f"every scheme failed; the first: {self.labels[0]}: {self.reasons[self.labels[0]]}")
        return None


def measure_windows(
    kind: Kind,
    options: Options,
    subject: Subject,
    schemes: Sequence[SchemeContender],
    measured: dict[str, object],
    layers: Sequence[int],
    kv_heads: Sequence[int],
    of_batch: Callable[[Batch], list[Arrays]],
    failing: Failing,
    on_note: Callable[[str], None] = lambda text: None,
    backward: bool = False,
) -> tuple[Measurement, Path]:
    """Measure the windows that the folder does not have yet, `options.batch` at a time; each batch is on disk before the next
    begins, and where memory runs out it is begun again in halves.

    measured: what else the numbers depend on. of_batch(batch): the arrays of each window; failing: tells of schemes that have none;
    backward: it takes gradients. With options.retry_failed a measurement with failed schemes is begun again.
    """
    settings = settings_of(options, subject, [scheme.name for scheme in schemes], measured)
    with ExitStack() as held:
        folder, record = open_folder(
            options.out,
            f"{kind}.json",
            settings,
            lambda folder: load_measurement(folder, kind),
            holding(held, options.wait, on_note),
        )
        if record and record.failed and options.retry_failed:
            on_note(f"{', '.join(record.failed)} failed: all windows are measured again")
            record = None
            shutil.rmtree(folder / kind, ignore_errors=True)
        record = record or Measurement(
            **header_of(options, subject, settings),
            kind=kind,
            labels=[scheme.label for scheme in schemes],
            measured_layers=list(layers),
            kv_heads=list(kv_heads),
        )
        failing.reasons |= record.failed
        left = [window for window in subject.windows if not has_window(record, folder, window.index)]
        if record.status == "complete":
            if not left:
                on_note(f"{folder} holds this measurement already, complete")
                return record, folder
            on_note(f"{folder} is damaged; measured again: windows {spans([window.index for window in left])}")
        save_measurement(record, folder)

        def keep(batch: Batch) -> None:
            for window, arrays in zip(batch.windows, of_batch(batch), strict=True):
                save_window(record, folder, window.index, arrays)
            if record.failed != failing.reasons:
                record.failed = dict(failing.reasons)
                save_measurement(record, folder)

        model = subject.loaded.model
        size = batch_size(options.batch, model, options.window_length, options.score_length, backward=backward)
        with fused_kernels(len(left), on_note):
            in_batches(left, size, keep, lambda windows, size: on_note(halved(windows, size)))
        record.status = "complete"
        save_measurement(record, folder)
        return record, folder


def named(batch: Batch, windows: Sequence[Window]) -> str:
    """Which of the windows these are, for people."""
    positions = [windows.index(window) + 1 for window in batch.windows]
    if len(positions) == 1:
        return f"window {positions[0]}/{len(windows)}"
    return f"windows {spans(positions).replace('-', '–')} of {len(windows)}"
