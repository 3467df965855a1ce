"""Batches of windows × contenders, each prefilled once; a batch is on disk before the one after the next begins."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from harness import controls
from harness.audit import Observer, Reads, total
from harness.batching import rows_of
from harness.caches.contenders import Contender
from harness.caches.scheme import SchemeCache
from harness.failures import failures
from harness.protocols import prefill, single_pass_logits, suffix_logits
from harness.recorded import WORTH, Recorded
from harness.records.run import RUN_FILE, Run, WindowRecord, save_run, save_tokens
from harness.scoring import NotFinite, Reference, Scores, check_finite
from harness.subject.errors import one_line
from harness.subject.probing import kv_shapes
from harness.subject.windows import Batch, Window
from schemes.errors import UserError

LayersRead = dict[int, Reads]  # by layer


@dataclass
class Progress:
    """What a run tells while it goes: one call per scored pass, with the positions of the windows that went through it, the
    contender and their mean loss."""

    on_pass: Callable[[range, int, str, float], None] = lambda windows, contender, label, nll: None
    on_note: Callable[[str], None] = lambda text: None


@dataclass
class Runner:
    """Scores contenders on windows with one model. `contenders[0]` is the exact baseline.

    file: in the folder, where the record goes. controls: whether the first windows run them; of several processes only the
    first's do. elsewhere: windows before the next batch that other processes score.
    """

    model: Any
    model_name: str
    contenders: Sequence[Contender]
    run: Run
    folder: Path
    progress: Progress = field(default_factory=Progress)
    timings: dict[str, list[float]] = field(default_factory=dict)
    file: str = RUN_FILE
    controls: bool = True
    elsewhere: int = 0

    def __post_init__(self) -> None:
        self._full_layers = list(kv_shapes(self.model))
        self._recording: tuple[int, Recorded] | None = None
        self._told_of_kernels = False
        self._writing: Future[None] | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While this lasts a batch is written while the next is scored; at its end all are."""
        with ThreadPoolExecutor(1) as self._writer:
            yield
            self._written()

    def on_kernel(self, name: str) -> None:
        if not self._told_of_kernels:
            self._told_of_kernels = True
            self.progress.on_note("compiling kernels for this GPU, a second each; they are kept for later runs")

    def score(self, windows: Sequence[Window]) -> None:
        """Score windows that the record does not have yet, while `writing`; save after each batch.

        Batches are cut from what is left, so that a continued run has those of an unbroken one. Where memory runs out the
        batch is begun again in halves, and the record says so.
        """
        left, size = list(windows), self.run.batch
        while left:
            batch, before = Batch(tuple(left[:size])), self.run.model_copy(deep=True)
            try:
                self._batch(batch)
            except torch.OutOfMemoryError as error:
                needed = one_line(error)
            else:
                left = left[size:]
                continue
            if len(batch) == 1:
                raise UserError(
                    f"one window at a time is too much for the memory of this device: {needed}; use shorter windows, fewer "
                    "schemes at a time, a smaller --dtype, or another device"
                )
            size = len(batch) // 2
            before.batch = size
            self.run = before
            self._recording = None
            self.progress.on_note(f"out of memory with {len(batch)} windows at once: going on with {size}")
            torch.cuda.empty_cache()

    def _batch(self, batch: Batch) -> None:
        torch.manual_seed(self.run.settings.seed)
        started = time.perf_counter()
        prefilled = prefill(self.model, batch.prefix)
        self._time("prefill", started)
        scored: list[Scores] = []
        reads: list[list[LayersRead]] = []  # by contender, then window
        self._reference: Reference | None = None
        before = self.elsewhere + len(self.run.windows)
        positions = range(before, before + len(batch))
        for position, contender in enumerate(self.contenders):
            scores, observed = Scores.none(*batch.targets.shape), [{} for _ in batch.windows]
            if not self._failed(position):
                try:
                    scores, observed = self._contender(position, contender, batch, prefilled)
                except Exception as error:
                    if isinstance(error, torch.OutOfMemoryError) and (not contender.foreign or len(batch) > 1):
                        raise
                    if position == 0 and isinstance(error, NotFinite):
                        raise UserError(
                            f"{self.model_name} in {self.run.settings.dtype}, exact cache: {error}"
                        ) from None
                    if not contender.foreign and not isinstance(error, NotFinite):
                        raise
                    if isinstance(error, NotFiniteFrom):
                        scores, observed = error.scores, error.reads
                    self._fail(position, contender, error)
            scored.append(scores)
            reads.append(observed)
            self.progress.on_pass(positions, position, contender.label, scores.nll.double().mean().item())
        started = time.perf_counter()
        self._keep(batch, scored, reads)
        self._time("record", started)

    def _contender(
        self, position: int, contender: Contender, batch: Batch, prefilled: DynamicCache
    ) -> tuple[Scores, list[LayersRead]]:
        """Of all windows of the batch: together, or one after another where the contender must have them so."""
        if len(batch) == 1 or not self._alone(contender):
            return self._score(position, contender, batch, prefilled, slice(0, len(batch)))
        scores: list[Scores] = []
        reads: list[LayersRead] = []
        for i, window in enumerate(batch.windows):
            one = slice(i, i + 1)
            try:
                some, observed = self._score(position, contender, Batch((window,)), rows_of(prefilled, one), one)
            except NotFinite as error:
                missing = len(batch) - i
                raise NotFiniteFrom(
                    error,
                    Scores.joined([*scores, Scores.none(missing, batch.targets.shape[1])]),
                    [*reads, *({} for _ in range(missing))],
                ) from None
            scores.append(some)
            reads += observed
        return Scores.joined(scores), reads

    def _alone(self, contender: Contender) -> bool:
        """Foreign caches may not take windows together, some encoders mix them, and rows are compared one by one."""
        return contender.foreign or contender.mixes_rows or self._by_value(contender)

    def _by_value(self, contender: Contender) -> bool:
        """What says that it changes nothing is tested row by row; the exact baseline has a control of its own."""
        return contender.foreign or (contender.lossless and contender is not self.contenders[0])

    def _score(
        self, position: int, contender: Contender, batch: Batch, prefilled: DynamicCache, windows: slice
    ) -> tuple[Scores, list[LayersRead]]:
        """windows: which of the reference's these are. On the first batch with the contender's record and the
        controls."""
        settings = self.run.settings
        logits, observed = self._pass(position, contender, batch, prefilled)
        if position == 0:
            if self.controls and not self.run.windows:
                started = time.perf_counter()
                controls.check_identity(self.run.audit, self.model, batch, prefilled, logits, settings)
                self._time("control: identity", started)
            self._reference = Reference(logits)
        assert self._reference is not None
        reference = self._reference.of_windows(windows)
        started = time.perf_counter()
        scores = reference.score(logits, batch.targets)
        self._time("scoring", started)
        try:
            check_finite(scores, batch, settings.dtype)
        except NotFinite as error:
            reads = [observed if i < error.first else {} for i in range(len(batch))]
            raise NotFiniteFrom(error, scores.from_window(error.first), reads) from None
        measured = len(self.run.windows)
        if self.controls and position == 0 and measured < controls.FLOOR_WINDOWS:
            started = time.perf_counter()
            self.run.noise_floor = controls.noise_floor(
                self.run.noise_floor,
                self.model,
                batch,
                prefilled,
                self._reference,
                scores,
                settings,
                controls.FLOOR_WINDOWS - measured,
            )
            self._time("control: noise floor", started)
        return scores, [observed for _ in batch.windows]

    def _failed(self, position: int) -> bool:
        return position < len(self.run.contenders) and self.run.contenders[position].error is not None

    def _fail(self, position: int, contender: Contender, error: Exception) -> None:
        """The row's record says why; the contender is not run again."""
        if position == len(self.run.contenders):
            self.run.contenders.append(contender.record(self.model, None, None))
        kind = "" if isinstance(error, NotFinite) else f"{type(error).__name__}: "
        self.run.contenders[position].error = reason = f"{kind}{one_line(error)}"
        self.progress.on_note(f"{contender.label} failed, the others go on: {reason}")

    def _pass(
        self, position: int, contender: Contender, batch: Batch, prefilled: DynamicCache
    ) -> tuple[Tensor, LayersRead]:
        """Logits, and what each layer read for a window. The first pass of a contender leaves its record, and runs the
        control that needs its filled cache."""
        settings = self.run.settings
        cache = contender.empty(self.model)
        scored, layers = settings.score_length - 1, self._full_layers
        observer = Observer(cache, scored, layers, declared=False) if self._by_value(contender) else None
        first = position == len(self.run.contenders)
        if settings.protocol == "single-pass":
            observer = observer or Observer(cache, scored, layers, declared=True)
            observer.watch()
            started = time.perf_counter()
            logits = single_pass_logits(self.model, cache, batch.tokens, settings.score_length)
            if first:
                self._record(contender, cache, None)
        else:
            started = time.perf_counter()
            contender.fill(cache, self.model, batch, prefilled)
            self._time(f"{contender.name} fill", started)
            if first:
                started = time.perf_counter()
                self._first_filled(contender, cache, batch, prefilled)
                self._time("control: zeroed codes", started)
            observer = observer or Observer(cache, scored, layers, declared=True)
            observer.watch()
            started = time.perf_counter()
            logits = suffix_logits(self.model, cache, batch.suffix, settings.step, self._recorded(len(batch)))
        self._time(f"{contender.name} score", started)
        return logits, observer.stop().reads

    def _recorded(self, windows: int) -> Recorded | None:
        """The recorded forwards of a stepwise suffix, for batches of this size, where recording pays."""
        if self.run.settings.step is None or self.model.device.type != "cuda" or len(self.contenders) < WORTH:
            return None
        if hasattr(self.model, "hf_device_map"):  # a graph is of one device
            return None
        if self._recording is None or self._recording[0] != windows:
            self._recording = (windows, Recorded(self.model))  # those of other sizes are let go
        return self._recording[1]

    def _first_filled(self, contender: Contender, cache: Any, batch: Batch, prefilled: DynamicCache) -> None:
        """Its record, as of one window; the destructive control on the first few."""
        if contender.foreign:
            self._record(contender, cache, prefilled)
            return
        self._record(contender, cache if len(batch) == 1 else rows_of(cache, slice(0, 1)), prefilled)
        if self.controls and isinstance(cache, SchemeCache) and not contender.lossless:
            few = batch.first(controls.FLOOR_WINDOWS)
            some = copy.deepcopy(cache) if len(few) == len(batch) else rows_of(cache, slice(0, len(few)))
            step = self.run.settings.step
            controls.check_zeroed_codes(self.run.audit, contender, self.model, few, some, step)

    def _record(self, contender: Contender, cache: Any, prefilled: DynamicCache | None) -> None:
        record = contender.record(self.model, cache, prefilled)
        record.window_by_window = self.run.batch > 1 and self._alone(contender)
        self.run.contenders.append(record)

    def _time(self, what: str, started: float) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.timings.setdefault(what, []).append(round(time.perf_counter() - started, 4))

    def _keep(self, batch: Batch, scored: list[Scores], reads: list[list[LayersRead]]) -> None:
        arrays_of = [
            {name: np.stack([getattr(one, name)[i].numpy() for one in scored]) for name in ("nll", "kl", "top1")}
            for i in range(len(batch))
        ]
        for i, (window, arrays) in enumerate(zip(batch.windows, arrays_of, strict=True)):
            sums = [total(by_window[i].values()) for by_window in reads]
            self.run.windows.append(window_sums(arrays, window.index, window.start, sums))
            for contender, by_window in zip(self.contenders, reads, strict=True):
                controls.add_reads(self.run.audit, contender.label, by_window[i])
        self.run.batches.append(len(batch))
        self.run.audit.failures = failures(self.run)
        self._written()
        self._writing = self._writer.submit(self._write, batch, arrays_of, self.run.model_copy(deep=True))

    def _write(self, batch: Batch, arrays_of: list[dict[str, np.ndarray]], run: Run) -> None:
        """While the next batch is scored: compressing takes longer than scoring a window on a GPU. The record last, which
        says that the windows are there."""
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda window, arrays: save_tokens(self.folder, window.index, arrays), batch.windows, arrays_of
                )
            )
        save_run(run, self.folder, self.file)

    def _written(self) -> None:
        """Wait for the batch before, and raise what went wrong with it."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


class NotFiniteFrom(NotFinite):
    """With what the windows before have."""

    def __init__(self, error: NotFinite, scores: Scores, reads: list[LayersRead]):
        super().__init__(str(error), error.first)
        self.scores, self.reads = scores, reads


def window_sums(arrays: dict[str, np.ndarray], index: int, start: int, reads: Sequence[Reads]) -> WindowRecord:
    """The sums of a window from its per-token arrays, in float64."""
    return WindowRecord(
        index=index,
        start=start,
        count=arrays["nll"].shape[1],
        nll=[float(x) for x in arrays["nll"].astype(np.float64).sum(axis=1)],
        kl=[float(x) for x in arrays["kl"].astype(np.float64).sum(axis=1)],
        top1=[int(x) for x in arrays["top1"].sum(axis=1)],
        probability=[float(x) for x in np.exp(-arrays["nll"].astype(np.float64)).sum(axis=1)],
        key_pairs=[r.key for r in reads],
        value_pairs=[r.value for r in reads],
        pairs=[r.pairs for r in reads],
    )
