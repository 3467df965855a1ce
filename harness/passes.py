"""One contender over a batch of windows: its cache filled, with its record and controls the first time, then scored."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness import controls
from kvdelta.harness.audit import Observer, Reads, declaring_layers
from kvdelta.harness.batching import rows_of
from kvdelta.harness.caches.contenders import Contender, goes_alone
from kvdelta.harness.caches.heads import Gather, own
from kvdelta.harness.processes import Processes
from kvdelta.harness.protocols import single_pass_logits, suffix_logits
from kvdelta.harness.recorded import WORTH, Recorded
from kvdelta.harness.records.run import Run
from kvdelta.harness.scoring import NotFinite, Reference, Scores, not_finite
from kvdelta.harness.stopwatch import Stopwatch
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch

LayersRead = dict[int, Reads]  # by layer
Later = Callable[[], "Outcome"]
"""Waits for the device: to be called once it has been given more to do."""


@dataclass(frozen=True)
class Outcome:
    """Of a contender over a batch. reads: by window, what each layer read. error: of numbers that are not finite; from that
    window on the scores are NaN and nothing is read."""

    scores: Scores
    reads: list[LayersRead]
    error: NotFinite | None = None

    @classmethod
    def none(cls, batch: Batch) -> "Outcome":
        return cls(Scores.none(*batch.targets.shape), [{} for _ in batch.windows])

    @classmethod
    def joined(cls, outcomes: "Sequence[Outcome]") -> "Outcome":
        return cls(
            Scores.joined([one.scores for one in outcomes]),
            [reads for one in outcomes for reads in one.reads],
            next((one.error for one in outcomes if one.error), None),
        )


@dataclass
class Passes:
    """The passes of one run. `contenders[0]` is the exact baseline. with_controls: of several processes only the first runs
    them. spread: the processes that share the model's heads, and go through all passes together; None where this one has all.
    watch: seconds by what they were spent on."""

    model: Any
    contenders: Sequence[Contender]
    with_controls: bool = True
    spread: Processes | None = None

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.model)
        self._recording: tuple[int, Recorded] | None = None
        self._reference: Reference | None = None

    @property
    def gather(self) -> Gather:
        return self.spread.gather if self.spread else own

    def over(self, position: int, run: Run, batch: Batch, prefilled: DynamicCache) -> Later:
        """A contender over all windows of the batch: together, or one after another where it must have them so. The exact
        baseline goes first."""
        contender = self.contenders[position]
        if len(batch) == 1 or not self._alone(contender):
            return self._over(position, run, batch, prefilled, slice(0, len(batch)))
        outcomes: list[Outcome] = []
        for i, window in enumerate(batch.windows):
            one, here = Batch((window,)), slice(i, i + 1)
            if outcomes and outcomes[-1].error:
                outcomes.append(Outcome.none(Batch(batch.windows[i:])))
                break
            outcomes.append(self._over(position, run, one, rows_of(prefilled, here), here)())
        joined = Outcome.joined(outcomes)
        return lambda: joined

    def forget(self) -> None:
        """What memory is held beside the model between batches."""
        self._recording = self._reference = None

    def _alone(self, contender: Contender) -> bool:
        """Foreign caches may not take windows together, some encoders mix them, and rows are compared one by one."""
        return goes_alone(contender) or self._by_value(contender)

    def _by_value(self, contender: Contender) -> bool:
        """What says that it changes nothing is tested row by row; the exact baseline has a control of its own."""
        return contender.foreign or (contender.lossless and contender is not self.contenders[0])

    def _over(self, position: int, run: Run, batch: Batch, prefilled: DynamicCache, windows: slice) -> Later:
        """windows: which of the reference's these are."""
        settings = run.settings
        logits, reads = self._logits(position, run, batch, prefilled)
        if position == 0:
            if self.with_controls and not run.windows:
                started = self.watch.start()
                controls.check_identity(run.audit, self.model, batch, prefilled, logits, settings)
                self.watch.stop("control: identity", started)
            self._reference = Reference(logits)
        assert self._reference is not None
        reference = self._reference.of_windows(windows)
        started = self.watch.start()
        scores = reference.score_later(logits if position else None, batch.targets)
        self.watch.stop("scoring", started)

        def later() -> Outcome:
            found = scores()
            if error := not_finite(found, batch, settings.dtype):
                return Outcome(
                    found.until(error.first), [reads if i < error.first else {} for i in range(len(batch))], error
                )
            left = controls.FLOOR_WINDOWS - len(run.windows)
            if self.with_controls and position == 0 and left > 0:
                started = self.watch.start()
                run.noise_floor = controls.noise_floor(
                    run.noise_floor, self.model, batch, prefilled, reference, found, settings, left
                )
                self.watch.stop("control: noise floor", started)
            return Outcome(found, [reads for _ in batch.windows])

        return later

    def _logits(self, position: int, run: Run, batch: Batch, prefilled: DynamicCache) -> tuple[Tensor, LayersRead]:
        """And what each layer read for a window. The first time the contender leaves its record, and its filled cache goes
        through the destructive control."""
        settings, contender = run.settings, self.contenders[position]
        cache, first = contender.empty(self.model), position == len(run.contenders)
        scored, declared = settings.score_length - 1, not self._by_value(contender)
        layers = declaring_layers(cache) if declared else list(kv_shapes(self.model))
        # by value it must see what is written; where it is declared, only what is scored
        observer = None if declared else Observer(cache, scored, layers, declared, gather=self.gather)
        if settings.protocol == "single-pass":
            observer = observer or Observer(cache, scored, layers, declared, gather=self.gather)
            observer.watch()
            started = self.watch.start()
            logits = single_pass_logits(self.model, cache, batch.tokens, settings.score_length)
            if first:
                self._record(contender, run, cache, None)
        else:
            started = self.watch.start()
            contender.fill(cache, self.model, batch, prefilled)
            self.watch.stop(f"{contender.name} fill", started)
            if first:
                self._first_filled(contender, run, cache, batch, prefilled)
            observer = observer or Observer(cache, scored, layers, declared, gather=self.gather)
            observer.watch()
            started = self.watch.start()
            logits = suffix_logits(self.model, cache, batch.suffix, settings.step, self._recorded(run, len(batch)))
        self.watch.stop(f"{contender.name} score", started)
        return logits, observer.stop().reads

    def _first_filled(self, contender: Contender, run: Run, cache: Any, batch: Batch, prefilled: DynamicCache) -> None:
        """Its record, as of one window; the destructive control on the first few."""
        started = self.watch.start()
        one = cache if len(batch) == 1 else rows_of(cache, slice(0, 1))
        self._record(contender, run, one, prefilled)
        if self.with_controls and not (contender.lossless or contender.foreign):
            few = batch.first(controls.FLOOR_WINDOWS)
            some = copy.deepcopy(cache) if len(few) == len(batch) else rows_of(cache, slice(0, len(few)))
            controls.check_zeroed_codes(run.audit, contender, self.model, few, some, run.settings.step, self.gather)
        self.watch.stop("control: zeroed codes", started)

    def _record(self, contender: Contender, run: Run, cache: Any, prefilled: DynamicCache | None) -> None:
        record = contender.record(self.model, cache, prefilled, self.gather)
        record.window_by_window = run.batch > 1 and self._alone(contender)
        run.contenders.append(record)

    def _recorded(self, run: Run, windows: int) -> Recorded | None:
        """The recorded forwards of a stepwise suffix, for batches of this size, where recording pays."""
        if run.settings.step is None or self.model.device.type != "cuda" or len(self.contenders) < WORTH:
            return None
        if self.spread or hasattr(self.model, "hf_device_map"):  # a graph is of one device
            return None
        if self._recording is None or self._recording[0] != windows:
            self._recording = (windows, Recorded(self.model))  # those of other sizes are let go
        return self._recording[1]
