"""The record of tasks, tasks.json: what exact was tried on, and of every sample and scheme the loss, the match and what was read."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from kvdelta.harness.records import journal
from kvdelta.harness.records.record import Typed, read_record, save_record
from kvdelta.harness.records.run import Audit, Bytes, ContenderRecord, Header, Sum
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json

TASKS_FILE, JOURNAL = "tasks.json", "tasks.journal"


class Try(Typed):
    """Exact alone on samples that are not scored. level: from 1; said: what it is; match: how many of `samples` it gave; nll: mean nats
    of an answer; chance: the same by guessing."""

    level: int
    said: str
    samples: int
    match: int
    nll: float
    chance: float


class Cell(Typed):
    """A task at a length; 0: samples as they are. level, said: what is scored; None of the user's own, and where the model
    cannot. verdict: how exact does at it, in words; cannot: the model does no better than chance, so nothing is scored. bytes: by contender, at
    the first sample's context; empty before that."""

    task: str
    length: int
    level: int | None
    said: str
    tries: list[Try] = Field(default_factory=list)
    verdict: str = ""
    cannot: bool = False
    bytes: list[dict[str, Bytes] | None] = Field(default_factory=list)


class SampleRecord(Typed):
    """One sample; lists are in the order of the contenders, NaN (and no match) where one had failed.

    context, question: tokens; count: of the answer, which are scored; answers: how many it has. chance: of a match by guessing.
    nll, kl: sums over the answer's tokens. match: whether each of them is the likeliest behind the question and the answer's tokens before it:
    what greedy decoding gives that stores the context as the scheme does and keeps all that comes after it exact (stepwise: stores that too).
    found: how many of the answers are so, each behind those before it as they should be. key_pairs, value_pairs, pairs: pairs of a query and
    a token of the context, read from packed storage by side, and all. sha256 of the token ids: ids; of the context's alone: context_ids
    (None in older records).
    """

    task: str
    length: int
    number: int
    depth: float | None
    at: float | None
    context: int
    question: int
    count: int
    answers: int
    chance: float | None
    ids: str
    context_ids: str | None = None
    nll: list[Sum]
    kl: list[Sum]
    match: list[bool]
    found: list[int]
    key_pairs: list[int]
    value_pairs: list[int]
    pairs: list[int]


class TaskRecord(Header):
    """What `kvdelta tasks` leaves in tasks.json. planned: samples of all cells together, where the model can."""

    contenders: list[ContenderRecord] = Field(default_factory=list)
    cells: list[Cell] = Field(default_factory=list)
    samples: list[SampleRecord] = Field(default_factory=list)
    audit: Audit = Field(default_factory=Audit)
    planned: int = 0


class Entry(Typed):
    """What a sample, or a cell whose difficulty was found, adds to a record: an entry of its journal. contenders, audit, cells: as they are
    from here on; None: as before."""

    sample: SampleRecord | None = None
    contenders: list[ContenderRecord] | None = None
    audit: Audit | None = None
    cells: list[Cell] | None = None


def has_tasks(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / TASKS_FILE)  # False too where the system refuses the name


def load_tasks(folder: str | Path, on_damage: Callable[[str], None] | None = None) -> TaskRecord:
    """With what its journal adds. UserError where `folder` holds none, or where it is damaged; where a line of the journal alone is,
    `on_damage` may be told instead, and what is before that line is read: the audit behind it counts its sample too."""
    record = read_record(folder, TASKS_FILE, TaskRecord)
    path = Path(folder) / JOURNAL
    for line, entry in enumerate(_entries(path) if record.status != "complete" else [], 1):
        if entry is None:
            damage = f"{path} is damaged: line {line} is not as it was written"
            if on_damage is None:
                raise UserError(f"{damage}; the command that made it keeps what is before, and scores the rest again")
            on_damage(f"{damage}; samples from there on are scored again")
            break
        _add(record, entry)
    _check(record, Path(folder) / TASKS_FILE)
    return record


def save_tasks(record: TaskRecord, folder: Path) -> None:
    """All of it, so that the journal is not needed any more."""
    save_record(record, folder / TASKS_FILE)
    (folder / JOURNAL).unlink(missing_ok=True)


def log(folder: Path, entry: Entry) -> None:
    """On disk before it returns."""
    journal.append(folder / JOURNAL, entry.model_dump_json())


def _entries(path: Path) -> list[Entry | None]:
    """None for a line that was damaged."""
    try:
        return [None if line is None else Entry.model_validate(parse_json(line)) for line in journal.read(path)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; delete it, and its samples are scored again"
        ) from None


def _add(record: TaskRecord, entry: Entry) -> None:
    """Once: a record that was saved just before the process ended has what its journal says."""
    sample = entry.sample
    if sample is not None and any(_place(one) == _place(sample) for one in record.samples):
        return
    record.contenders = record.contenders if entry.contenders is None else entry.contenders
    record.audit = record.audit if entry.audit is None else entry.audit
    record.cells = record.cells if entry.cells is None else entry.cells
    record.samples += [] if sample is None else [sample]


def _place(sample: SampleRecord) -> tuple[Any, ...]:
    return sample.task, sample.length, sample.number


def _check(record: TaskRecord, path: Path) -> None:
    """UserError where parts of a record do not fit each other."""
    places = [_place(sample) for sample in record.samples]
    cells, scored = [(cell.task, cell.length) for cell in record.cells], {place[:2] for place in places}
    wanted, ended = {(cell.task, cell.length) for cell in record.cells if not cell.cannot}, record.status == "complete"
    wrong = None
    if len(set(places)) < len(places) or len(set(cells)) < len(cells) or not scored <= wanted:
        wrong = "it has a sample or a task twice, or a sample of a task that it does not name as one that the model can"
    elif places and not _are_contenders(record.contenders):
        wrong = "it has samples, and its schemes are none, or not exact first, or of sides that no cache has"
    elif any(not _fits(sample, record.contenders) for sample in record.samples):
        wrong = "a sample has not a figure for each of its schemes, or one that cannot be"
    elif any(not _sized(cell, len(record.contenders), (cell.task, cell.length) in scored) for cell in record.cells):
        wrong = "a task has not the bytes of each scheme, or such as cannot be"
    elif ended and (len(places) != record.planned or not cells or wanted != scored):
        wrong = f"it has {len(places)} of {record.planned} samples, of {len(scored)} of {len(wanted)} tasks"
    if wrong:
        raise UserError(f"{path} is not a record of tasks: {wrong}")


def _are_contenders(contenders: list[ContenderRecord]) -> bool:
    sides = {side for one in contenders for side in one.quantized_sides}
    return bool(contenders) and contenders[0].error is None and contenders[0].lossless and sides <= {"key", "value"}


def _sized(cell: Cell, rows: int, scored: bool) -> bool:
    sides = [side for one in cell.bytes if one is not None for side in one.values()]
    return len(cell.bytes) == (rows if scored else 0) and all(
        side.elements >= 1 and math.isfinite(side.counted) and side.counted >= 0 for side in sides
    )


def _fits(sample: SampleRecord, contenders: list[ContenderRecord]) -> bool:
    series = [sample.nll, sample.kl, sample.match, sample.found, sample.key_pairs, sample.value_pairs, sample.pairs]
    shares = [one for one in (sample.depth, sample.at, sample.chance) if one is not None]
    return (
        {len(one) for one in series} == {len(contenders)}
        and sample.count >= sample.answers >= 1
        and min(sample.context, sample.question) >= 1
        and all(0 <= share <= 1 for share in shares)
        and all(
            contender.error is not None or (math.isfinite(nll) and math.isfinite(kl))
            for contender, nll, kl in zip(contenders, sample.nll, sample.kl, strict=True)
        )
        and all(0 <= found <= sample.answers for found in sample.found)
        and all(
            0 <= read <= pairs
            for side in (sample.key_pairs, sample.value_pairs)
            for read, pairs in zip(side, sample.pairs, strict=True)
        )
    )
