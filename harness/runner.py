"""Batches of windows × protocols × contenders, each prefilled once; a batch is on disk before the next begins."""

import shlex
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from kvdelta.harness.audit import total
from kvdelta.harness.batching import halved, in_batches
from kvdelta.harness.caches.contenders import stores_sliding
from kvdelta.harness.failures import failures
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.passes import Later, Outcome, Passes
from kvdelta.harness.processes import of_others
from kvdelta.harness.protocols import prefill
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.records import journal
from kvdelta.harness.records.run import Entry, Run, WindowRecord
from kvdelta.harness.records.run_folder import RUN_FILE, journal_of
from kvdelta.harness.records.timings import Timings
from kvdelta.harness.records.tokens import save_tokens, sums_of
from kvdelta.harness.records.writing import write_file
from kvdelta.harness.scoring import PER_TOKEN, NotFinite
from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.subject.windows import Batch, Window
from kvdelta.harness.time_limit import at_most
from kvdelta.schemes.errors import UserError

WRITERS = 16  # files of tokens at once


@dataclass
class Progress:
    """What a run tells while it goes: one call per scored pass, with the positions of the windows that went through it, the
    contender and their mean loss."""

    on_pass: Callable[[range, int, str, float], None] = lambda windows, contender, label, nll: None
    on_note: Callable[[str], None] = lambda text: None

    def of_part(self, part: int, contenders: int, name: str) -> "Progress":
        """Of one of several protocols, which take turns in each batch."""

        def on_pass(windows: range, contender: int, label: str, nll: float) -> None:
            self.on_pass(windows, part * contenders + contender, f"{label}, {name}" if name else label, nll)

        return Progress(on_pass, self.on_note)


@dataclass(frozen=True)
class Mark:
    """A place in a run. run: without its windows. windows, batches: how many there were. size: of the journal, in bytes. told: how many of
    the timings are in it."""

    run: Run
    windows: int
    batches: int
    size: int
    told: dict[str, int]


@dataclass
class Runner:
    """Scores contenders on windows with one model and by one protocol.

    spent: on the run before this process. file: in the folder, where the record goes. keeps: whether this process writes it.
    elsewhere: windows before the next batch that other processes score. dropped: labels of contenders that are not scored from here
    on. time_limit: seconds of a contender for a batch.
    """

    passes: Passes
    model_name: str
    run: Run
    folder: Path
    progress: Progress = field(default_factory=Progress)
    spent: Timings = field(default_factory=Timings)
    file: str = RUN_FILE
    keeps: bool = True
    elsewhere: int = 0
    dropped: Collection[str] = ()
    time_limit: float | None = None
    _told: dict[str, int] = field(default_factory=dict)  # how many of the timings are in the journal
    _moment: float = field(default_factory=time.perf_counter)  # of its last entry

    def batch(self, batch: Batch, prefilled: DynamicCache) -> None:
        """Score the windows of a batch, and save them."""
        torch.manual_seed(self.run.settings.seed)
        before = self.elsewhere + len(self.run.windows)
        outcomes: list[Outcome] = []
        waiting: list[tuple[int, Later]] = []
        for position, contender in enumerate(self.passes.contenders):
            if contender.label in self.dropped and not self._failed(position):
                self._fail(position, f"dropped after {before} windows (--drop)")
            # a GPU works on the next contender while the scores of the last one are looked at
            prompt = self._prompt(position)
            waiting.append((position, self._begun(position, batch, prefilled, prompt)))
            while len(waiting) > (0 if prompt else 1):
                outcomes.append(self._arrived(*waiting.pop(0), before, batch))
        outcomes += [self._arrived(*one, before, batch) for one in waiting]
        self.passes.watch.settle()
        started = time.perf_counter()
        self._keep(batch, outcomes)
        self.passes.watch.seconds.setdefault("record", []).append(round(time.perf_counter() - started, 4))

    def _prompt(self, position: int) -> bool:
        """Whether its scores are waited for at once: of what may end the run, or hang."""
        on_gpu = self.passes.model.device.type == "cuda"
        return not (on_gpu and position) or self.time_limit is not None or self.passes.contenders[position].foreign

    def _begun(self, position: int, batch: Batch, prefilled: DynamicCache, prompt: bool) -> Later:
        """A contender over the batch; what it raises fails its row."""
        contender = self.passes.contenders[position]
        if self._failed(position):
            return partial(Outcome.none, batch)
        try:
            with at_most(self.time_limit if position else None):
                later = self.passes.over(position, self.run, batch, prefilled)
                outcome = later() if prompt else None
        except RAISED as error:
            # for want of memory it is tried again with fewer windows; without exact there is nothing to compare with
            if position == 0 or (out_of_memory(error) and len(batch) > 1):
                raise
            if self.passes.spread:
                raise self._ended(contender.label, error) from error
            self._fail(position, reason_of(error))
            return partial(Outcome.none, batch)
        return later if outcome is None else lambda: outcome

    def _arrived(self, position: int, later: Later, before: int, batch: Batch) -> Outcome:
        """before: windows that were scored."""
        outcome = later()
        if outcome.error:
            self._not_finite(position, outcome.error)
        nll = outcome.scores.nll.double().mean().item()
        self.progress.on_pass(range(before, before + len(batch)), position, self.passes.contenders[position].label, nll)
        return outcome

    def mark(self) -> "Mark":
        """Where the run is now."""
        part = self.run.model_copy(update={"windows": [], "batches": []}).model_copy(deep=True)
        return Mark(
            part,
            len(self.run.windows),
            len(self.run.batches),
            journal.size(journal_of(self.folder, self.file)),
            self._told,
        )

    def go_back(self, mark: "Mark") -> None:
        """Take back what was scored since, in the journal too."""
        windows, batches = self.run.windows[: mark.windows], self.run.batches[: mark.batches]
        self.run = mark.run.model_copy(update={"windows": windows, "batches": batches})
        if self.keeps:
            journal.cut(journal_of(self.folder, self.file), mark.size)
        self._told = mark.told

    def _failed(self, position: int) -> bool:
        return position < len(self.run.contenders) and self.run.contenders[position].error is not None

    def _not_finite(self, position: int, error: NotFinite) -> None:
        if position == 0:
            raise UserError(f"{self.model_name} in {self.run.settings.dtype}, exact cache: {error}") from None
        self._fail(position, one_line(error))

    def _ended(self, label: str, error: BaseException) -> BaseException:
        """Of a process among those that share the model's heads: the others wait for it, and cannot know that its row failed."""
        if of_others(error):
            return error
        return UserError(
            f"{label} failed, and with it the run, whose processes share the model's heads and go on together or not at all: "
            f"{reason_of(error)}; finished windows are kept: the same command with --drop {shlex.quote(label)} "
            "goes on without it"
        )

    def _fail(self, position: int, reason: str) -> None:
        """The row's record says why; the contender is not run again."""
        contender = self.passes.contenders[position]
        if position == len(self.run.contenders):
            self.run.contenders.append(contender.record(self.passes.model, None, None))
        self.run.contenders[position].error = reason
        self.progress.on_note(f"{contender.label} failed, the others go on: {reason}")

    def _keep(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:  # a disk takes long to say that it has a file, and takes many at once
            writing: list[Future[None]] = []

            def write(path: Path, content: bytes) -> None:
                writing.append(pool.submit(write_file, path, content))

            for i, window in enumerate(batch.windows):
                arrays = {
                    name: np.stack([getattr(outcome.scores, name)[i].numpy() for outcome in outcomes])
                    for name in PER_TOKEN
                }
                reads = [total(outcome.reads[i].values()) for outcome in outcomes]
                self.run.windows.append(
                    WindowRecord(
                        index=window.index,
                        start=window.start,
                        **sums_of(arrays),
                        key_pairs=[r.key for r in reads],
                        value_pairs=[r.value for r in reads],
                        pairs=[r.pairs for r in reads],
                        tokens=save_tokens(self.folder, window.index, arrays, write) if self.keeps else "",
                    )
                )
                for contender, outcome in zip(self.passes.contenders, outcomes, strict=True):
                    self.run.audit.add_reads(contender.label, outcome.reads[i])
            for one in writing:
                one.result()
        self.run.batches.append(len(batch))
        self.run.audit.failures = failures(self.run)
        if self.keeps:
            self._log(len(batch))

    def _log(self, count: int) -> None:
        """The last windows of the run into its journal."""
        entry = Entry(
            before=len(self.run.windows) - count,
            windows=self.run.windows[-count:],
            batch=self.run.batch,
            contenders=self.run.contenders,
            audit=self.run.audit,
            noise_floor=self.run.noise_floor,
            seconds={
                name: new for name, all in self.passes.watch.seconds.items() if (new := all[self._told.get(name, 0) :])
            },
            wall=round(time.perf_counter() - self._moment, 4),
        )
        journal.append(journal_of(self.folder, self.file), entry.model_dump_json())
        self._told = {name: len(all) for name, all in self.passes.watch.seconds.items()}
        self._moment = time.perf_counter()


def score(runners: Sequence[Runner], windows: Sequence[Window]) -> None:
    """Score windows that the records do not have yet with each of the runners, one a protocol; save after each batch.

    Batches are cut from what is left, so that a continued run has those of an unbroken one. Where memory runs out the
    batch is begun again in halves, and the records say so.
    """
    passes = runners[0].passes

    def whole_batch(batch: Batch) -> None:
        """Or nothing of it in the records, where memory runs out."""
        before = [runner.mark() for runner in runners]
        try:
            batch = batch.on(passes.model.device)
            started = passes.watch.start()
            prefilled = prefill(passes.model, batch.prefix, whole=any(map(stores_sliding, passes.contenders)))
            passes.watch.stop("prefill", started)
            for runner in runners:
                runner.batch(batch, prefilled)
        except Exception as error:
            if out_of_memory(error):
                for runner, mark in zip(runners, before, strict=True):
                    runner.go_back(mark)
            raise

    def halve(count: int, size: int) -> None:
        if passes.spread:  # the others wait in this batch
            raise UserError(
                f"out of memory with {count} windows at once in one of the processes that share the model's heads, which ends them "
                f"all: begin again with --batch {size}"
            )
        for runner in runners:
            runner.run.batch = size
            runner.passes.forget()
        runners[0].progress.on_note(halved(count, size))

    in_batches(windows, min(runner.run.batch for runner in runners), whole_batch, halve)
