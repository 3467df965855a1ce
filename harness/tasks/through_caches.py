"""The difficulty of every task, then every sample through every scheme's cache; a sample is on disk before the next begins."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from kvdelta.harness import controls
from kvdelta.harness.audit import declaring_layers, total
from kvdelta.harness.caches.contenders import Contender, stores_sliding
from kvdelta.harness.dropping import dropped
from kvdelta.harness.failures import failures
from kvdelta.harness.options import Options
from kvdelta.harness.protocols import prefill
from kvdelta.harness.raising import RAISED, reason_of
from kvdelta.harness.records.run import Run, WindowRecord
from kvdelta.harness.records.tasks import (
    Cell,
    Entry,
    SampleRecord,
    TaskRecord,
    log,
    save_tasks,
)
from kvdelta.harness.scoring import WIDER, Reference
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch
from kvdelta.harness.tasks.answering import Answer, ContextReads, answer_logits, answered
from kvdelta.harness.tasks.difficulty import attempt, search
from kvdelta.harness.tasks.levels import LADDERS, named
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.harness.tasks.preparing import Work
from kvdelta.harness.tasks.samples import Sample
from kvdelta.harness.time_limit import at_most
from kvdelta.schemes.errors import UserError

OnSample = Callable[[int, int, str], None]
"""Told after each sample: how many there are of how many, and what it was of."""
OnScored = Callable[[SampleRecord, Sequence[str]], None]
"""Told each sample's figures, and the labels of the schemes that they are of."""


class ThroughCaches:
    """Samples × schemes, with what was done before in the record."""

    def __init__(
        self,
        work: Work,
        contenders: Sequence[Contender],
        options: Options,
        record: TaskRecord,
        folder: Path,
        on_sample: OnSample,
        on_note: Callable[[str], None],
        on_scored: OnScored,
    ):
        self.work, self.contenders, self.options = work, contenders, options
        self.record, self.folder = record, folder
        self.on_sample, self.on_note, self.on_scored = on_sample, on_note, on_scored
        self.model = work.loaded.model
        self.dropped = dropped(options, contenders)

    def finish(self, how: TaskOptions) -> None:
        done = {(one.task, one.length, one.number) for one in self.record.samples}
        for task, length in [(task, length) for length in how.lengths for task in how.generated]:
            self._cell(task, length, how)
        for task in dict.fromkeys(sample.task for sample in self.work.given):
            self._add_cell(Cell(task=task, length=0, level=None, said="as given"))
        samples = [sample for cell in self.record.cells if not cell.cannot for sample in self._samples(cell, how)]
        self.record.planned = len(samples)
        for sample in samples:
            if (sample.task, sample.length, sample.number) not in done:
                self._sample(sample)
                self.on_scored(self.record.samples[-1], [one.label for one in self.contenders])
                self.on_sample(len(self.record.samples), len(samples), f"{sample.task}, {len(sample.context)} tokens")
        if samples:
            self.record.audit.failures = failures(as_run(self.record))
        self.record.status = "complete"
        save_tasks(self.record, self.folder)

    def _cell(self, task: str, length: int, how: TaskOptions) -> None:
        """Its difficulty, as asked for or found."""
        if any((cell.task, cell.length) == (task, length) for cell in self.record.cells):
            return
        levels = LADDERS[task]
        if how.difficulty != "auto":
            level = min(int(how.difficulty), len(levels))
            said = named(levels[level - 1])
            self._add_cell(Cell(task=task, length=length, level=level, said=said, verdict="as asked for"))
            return
        assert self.work.maker is not None
        maker, depths = self.work.maker, [how.depth_of(i) for i in range(how.search)]

        def tried(level: int) -> Any:
            return attempt(self.model, maker, task, length, depths, level)

        self._add_cell(search(task, length, maker.levels(task, length), tried, self.on_note))

    def _add_cell(self, cell: Cell) -> None:
        if all((one.task, one.length) != (cell.task, cell.length) for one in self.record.cells):
            self.record.cells.append(cell)
            log(self.folder, Entry(cells=self.record.cells))

    def _samples(self, cell: Cell, how: TaskOptions) -> list[Sample]:
        if not cell.length:
            return [sample for sample in self.work.given if sample.task == cell.task]
        assert cell.level is not None
        assert self.work.maker is not None
        level, make = LADDERS[cell.task][cell.level - 1], self.work.maker.sample
        return [make(cell.task, level, cell.length, i, how.depth_of(i)) for i in range(how.samples)]

    def _sample(self, sample: Sample) -> None:
        """Through every scheme's cache, and into the journal."""
        torch.manual_seed(self.options.seed)
        batch = Batch((sample.window,))
        with torch.inference_mode():
            prefilled = prefill(self.model, batch.prefix, whole=any(map(stores_sliding, self.contenders)))
        answers: list[Answer] = []
        reads, reference = [], None
        cell = next(one for one in self.record.cells if (one.task, one.length) == (sample.task, sample.length))
        first = not cell.bytes
        for position, contender in enumerate(self.contenders):
            answer, read = Answer(float("nan"), float("nan"), False, 0), {}
            if contender.label in self.dropped and not self._failed(position):
                self._fail(position, f"dropped after {len(self.record.samples)} samples (--drop)")
            if not self._failed(position):
                try:
                    with at_most(self.options.time_limit if position else None):
                        answer, read, reference = self._over(position, sample, batch, prefilled, reference, cell, first)
                except RAISED as error:
                    if position == 0:  # without exact there is nothing to compare with
                        raise
                    self._fail(position, reason_of(error))
            cell.bytes += [None] if first and len(cell.bytes) == position else []
            answers.append(answer)
            reads.append(total(read.values()))
            self.record.audit.add_reads(contender.label, read)
        self.record.samples.append(
            SampleRecord(
                task=sample.task,
                length=sample.length,
                number=sample.number,
                depth=sample.depth,
                at=sample.at,
                context=len(sample.context),
                question=len(sample.question),
                count=len(sample.answer),
                answers=len(sample.spans),
                chance=sample.chance,
                ids=sample.sha256,
                context_ids=sample.context_sha256,
                nll=[one.nll for one in answers],
                kl=[one.kl for one in answers],
                match=[one.match for one in answers],
                found=[one.found for one in answers],
                key_pairs=[one.key for one in reads],
                value_pairs=[one.value for one in reads],
                pairs=[one.pairs for one in reads],
            )
        )
        log(
            self.folder,
            Entry(
                sample=self.record.samples[-1],
                contenders=self.record.contenders,
                audit=self.record.audit,
                cells=self.record.cells if first else None,
            ),
        )

    def _over(
        self,
        position: int,
        sample: Sample,
        batch: Batch,
        prefilled: DynamicCache,
        reference: Reference | None,
        cell: Cell,
        first: bool,
    ) -> tuple[Answer, dict[int, Any], Reference]:
        """One contender: its answer, what each layer read of the context, and what exact predicts."""
        contender, step = self.contenders[position], self.options.step
        cache = contender.empty(self.model)
        declared = not (contender.foreign or (contender.lossless and position))
        layers = declaring_layers(cache) if declared else list(kv_shapes(self.model))
        fed = batch.suffix.shape[1]
        new = ContextReads(cache, fed - 1, layers, declared, context=len(sample.context)) if not declared else None
        contender.fill(cache, self.model, batch, prefilled)
        if first:
            self._record(position, cell, cache, batch, prefilled)
        observer = new or ContextReads(cache, fed - 1, layers, declared, context=len(sample.context))
        observer.watch()
        logits = answer_logits(self.model, cache, sample, step)
        read = observer.stop().reads
        if position == 0 and not self.record.samples:
            stock = answer_logits(self.model, copy.deepcopy(prefilled), sample, step)
            self.record.audit.identity_is_exact = bool(torch.equal(stock, logits))
        if not torch.isfinite(logits).all():
            dtype = self.record.settings.dtype
            wrong = f"NaN or infinite logits in sample {sample.number} of {sample.task}"
            wrong += f"; {WIDER[dtype]}" if dtype in WIDER else ""
            raise UserError(f"{self.work.loaded.name} in {dtype}, exact cache: {wrong}" if position == 0 else wrong)
        answer, reference = answered(logits, sample, reference)
        return answer, read, reference

    def _record(self, position: int, cell: Cell, cache: Any, batch: Batch, prefilled: DynamicCache) -> None:
        """What it holds; the first time also what it is, and the control with zeroed codes."""
        contender = self.contenders[position]
        found = contender.record(self.model, cache, prefilled)
        cell.bytes.append(found.bytes)
        if position == len(self.record.contenders):
            self.record.contenders.append(found)
            if not (contender.lossless or contender.foreign):
                controls.check_zeroed_codes(
                    self.record.audit, contender, self.model, batch, copy.deepcopy(cache), self.options.step
                )

    def _failed(self, position: int) -> bool:
        return position < len(self.record.contenders) and self.record.contenders[position].error is not None

    def _fail(self, position: int, reason: str) -> None:
        contender = self.contenders[position]
        if position == len(self.record.contenders):
            self.record.contenders.append(contender.record(self.model, None, None))
        self.record.contenders[position].error = reason
        self.on_note(f"{contender.label} failed, the others go on: {reason}")


def as_run(record: TaskRecord) -> Run:
    """Samples as the windows of a run, whose audit has the same rules."""
    header = {name: getattr(record, name) for name in type(record).model_fields if name in Run.model_fields}
    windows = [
        WindowRecord(
            index=i,
            start=0,
            count=one.count,
            nll=one.nll,
            kl=one.kl,
            top1=[0] * len(one.nll),
            probability=one.nll,
            key_pairs=one.key_pairs,
            value_pairs=one.value_pairs,
            pairs=one.pairs,
        )
        for i, one in enumerate(record.samples)
    ]
    return Run(**header, windows=windows)
