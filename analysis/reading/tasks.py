"""What a record of tasks says of each scheme: by task and length, and by depth; from its record alone."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvdelta.analysis.reading.rows import Row
from kvdelta.harness import statistics
from kvdelta.harness.flips import mcnemar
from kvdelta.harness.records.run import Bytes
from kvdelta.harness.records.tasks import Cell, SampleRecord, TaskRecord

SATURATED = 0.95
"""The share of exact's matches above which matches say little."""


@dataclass(frozen=True)
class TaskRow(Row):
    """One scheme on a task at a length (0: as given), of a level (said in words), over its samples. Samples may ask different things of one
    context: contexts are the unit of the interval and of p, each the mean of its samples.

    bits: measured at the first sample's context. nll: mean over contexts of nats a token of the answer; delta_nll: how much more than exact's,
    with its 95 % t interval and p, and whether skewed differences make that interval too narrow; kl: from exact, nats a token. match: samples whose
    answer is verbatim what greedy decoding gives with all exact that comes after the context (SampleRecord), lost and gained against exact,
    p_match of McNemar's exact test, which takes samples for independent; both p are also adjusted for the schemes of the task and length
    (Holm). found: share of single answers, the earlier ones given, None where a sample has one. read: share of the pairs of a query
    and a token of the context that came from packed storage. chance: the mean chance of a match by guessing, None: unknown. cannot: the
    model cannot do the task, and nothing is scored. depth: of the samples, None: of all.
    """

    task: str
    length: int
    level: int | None
    said: str
    verdict: str
    cannot: bool
    scheme: str
    name: str
    samples: int
    contexts: int
    context: float
    chance: float | None
    bits: float | None
    nll: float
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    p: float
    p_holm: float
    skewed: bool
    kl: float
    match: int
    lost: int
    gained: int
    p_match: float
    p_match_holm: float
    read: float
    audit: str
    error: str | None
    found: float | None = None
    depth: float | None = None

    @property
    def refused(self) -> str:
        """Why the row shows no score; empty where it shows one."""
        if self.error:
            return "failed"
        return "" if self.audit == "ok" else "cache not read" if "cache not read" in self.audit else "audit failed"


def cell_rows(record: TaskRecord, cell: Cell, depth: float | None = None) -> list[TaskRow]:
    """One row a scheme; depth: of the samples with what is asked for there alone."""
    samples = [one for one in record.samples if (one.task, one.length) == (cell.task, cell.length)]
    samples = samples if depth is None else [one for one in samples if one.depth == depth]
    if not samples:
        return [_cannot(cell)] if cell.cannot and depth is None else []
    rows = [_row(record, cell, samples, i, depth) for i in range(len(record.contenders))]
    others = rows[1:]
    p = statistics.holm([row.p for row in others])
    p_match = statistics.holm([row.p_match for row in others])
    return [
        rows[0],
        *(replace(row, p_holm=a, p_match_holm=b) for row, a, b in zip(others, p, p_match, strict=True)),
    ]


def task_rows(record: TaskRecord) -> list[TaskRow]:
    return [row for cell in record.cells for row in cell_rows(record, cell)]


def depths_of(record: TaskRecord, cell: Cell) -> list[float]:
    """Where what is asked for lies; none where it is in several places."""
    return sorted(
        {
            one.depth
            for one in record.samples
            if (one.task, one.length) == (cell.task, cell.length) and one.depth is not None
        }
    )


def depth_rows(record: TaskRecord) -> list[TaskRow]:
    return [row for cell in record.cells for depth in depths_of(record, cell) for row in cell_rows(record, cell, depth)]


def by_context(samples: Sequence[SampleRecord]) -> list[list[SampleRecord]]:
    """Samples of one context together. Older records do not say which are: there each is by itself."""
    found = defaultdict[tuple[str | None, int], list[SampleRecord]](list)
    for one in samples:
        found[one.context_ids, one.number if one.context_ids is None else 0].append(one)
    return list(found.values())


def saturated(rows: Sequence[TaskRow]) -> bool:
    """Whether exact has nearly every sample of a cell right."""
    return bool(rows) and not rows[0].cannot and rows[0].match > SATURATED * rows[0].samples


def _row(record: TaskRecord, cell: Cell, samples: Sequence[SampleRecord], i: int, depth: float | None) -> TaskRow:
    contender, alike = record.contenders[i], by_context(samples)
    mine, exact, kl = (
        [sum(series(one) / one.count for one in group) / len(group) for group in alike]
        for series in (lambda one: one.nll[i], lambda one: one.nll[0], lambda one: one.kl[i])
    )
    chances = [one.chance for one in samples if one.chance is not None]
    nan = math.nan
    row = TaskRow(
        task=cell.task,
        length=cell.length,
        level=cell.level,
        said=cell.said,
        verdict=cell.verdict,
        cannot=False,
        scheme=contender.label,
        name=contender.name,
        samples=len(samples),
        contexts=len(alike),
        context=sum(one.context for one in samples) / len(samples),
        chance=sum(chances) / len(chances) if chances else None,
        bits=_bits(cell.bytes[i] if i < len(cell.bytes) else None),
        nll=nan,
        delta_nll=nan,
        delta_nll_low=nan,
        delta_nll_high=nan,
        p=nan,
        p_holm=nan,
        skewed=False,
        kl=nan,
        match=0,
        lost=0,
        gained=0,
        p_match=nan,
        p_match_holm=nan,
        read=nan,
        audit="; ".join(record.audit.failures.get(contender.label, [])) or "ok",
        error=contender.error,
        depth=depth,
    )
    if contender.error or not all(map(math.isfinite, mine)):
        return row
    delta = statistics.paired_delta(mine, exact, [1] * len(alike))
    lost = sum(one.match[0] and not one.match[i] for one in samples)
    gained = sum(one.match[i] and not one.match[0] for one in samples)
    pairs = sum(one.pairs[i] for one in samples)
    sides = contender.quantized_sides or ["key", "value"]
    read = {"key": sum(one.key_pairs[i] for one in samples), "value": sum(one.value_pairs[i] for one in samples)}
    several = any(one.answers > 1 for one in samples)
    return replace(
        row,
        nll=sum(mine) / len(mine),
        delta_nll=delta.delta,
        delta_nll_low=delta.low,
        delta_nll_high=delta.high,
        p=delta.p,
        skewed=delta.skewed,
        kl=sum(kl) / len(kl),
        match=sum(one.match[i] for one in samples),
        lost=lost,
        gained=gained,
        p_match=mcnemar(lost, gained),
        read=sum(read[side] for side in sides) / len(sides) / pairs if pairs else 0.0,
        found=sum(one.found[i] for one in samples) / sum(one.answers for one in samples) if several else None,
    )


def _cannot(cell: Cell) -> TaskRow:
    """Of a task that the model cannot do: no scheme is scored."""
    figures = dict.fromkeys(
        ("nll", "delta_nll", "delta_nll_low", "delta_nll_high", "p", "p_holm", "kl", "p_match", "p_match_holm", "read"),
        math.nan,
    )
    return TaskRow(
        task=cell.task,
        length=cell.length,
        level=cell.level,
        said=cell.said,
        verdict=cell.verdict,
        cannot=True,
        scheme="exact",
        name="exact",
        samples=0,
        contexts=0,
        context=math.nan,
        chance=None,
        bits=None,
        skewed=False,
        match=0,
        lost=0,
        gained=0,
        audit="ok",
        error=None,
        **figures,
    )


def _bits(sides: dict[str, Bytes] | None) -> float | None:
    """8 · bytes / elements, exact tokens at 16 bits; None where bytes were not measurable."""
    if not sides:
        return None
    return 8 * sum(one.counted for one in sides.values()) / sum(one.elements for one in sides.values())
