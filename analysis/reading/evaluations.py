"""What tasks say of schemes, each against exact on the same items, from their record alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Float64
from scipy import stats

from kvdelta.analysis.reading.rows import Row
from kvdelta.harness import statistics
from kvdelta.harness.flips import mcnemar, score_interval
from kvdelta.harness.records.evaluation import Evaluation, TaskRecord, TaskRow

GOLD = "NLL of the right choice"
PerItem = Float64[np.ndarray, "items"]


@dataclass(frozen=True)
class TaskFigure(Row):
    """One scheme in one measure of one task. score: mean over items; delta: how much more than exact, mean over units (`units_of`), with its 95 %
    interval over them and p, by Holm over the schemes: Tango's score interval and McNemar's exact test of a measure that is 0 or 1 in each
    unit, else of a paired t. lost, won: items that exact has
    right and the scheme not, and the other way round. key_coverage, value_coverage: share of attended pairs read from packed storage;
    bits: measured, over the contexts. silent: share of requests that read nothing. audit: why it cannot be believed, or ok."""

    task: str
    metric: str
    scheme: str
    name: str
    items: int
    units: int
    score: float
    delta: float
    low: float
    high: float
    p: float
    lost: int | None
    won: int | None
    bits: float
    key_coverage: float
    value_coverage: float
    silent: float
    audit: str
    is_baseline: bool

    @property
    def refused(self) -> str:
        """Why the row shows no score; empty where it shows one."""
        return "" if self.audit == "ok" else "audit failed"


@dataclass(frozen=True)
class Flip(Row):
    """An item that exact has right and a scheme wrong (lost), or the other way round (won). exact, answer: what each chose, by its position
    from 0, or wrote; gold: the right choice."""

    task: str
    metric: str
    scheme: str
    item: int
    kind: str
    gold: str
    exact: str
    answer: str


def figures(record: Evaluation) -> list[TaskFigure]:
    """By task, measure, and scheme in the order of the run."""
    return [row for task in record.tasks for metric in measures(task) for row in _of_measure(task, metric)]


def measures(task: TaskRecord) -> list[str]:
    """The names of a task's measures; the log-likelihood of the right choice is one, where each item has one."""
    told = bool(task.rows[0].loglikelihoods) and None not in task.gold
    return [*task.rows[0].metrics, *([GOLD] if told else [])]


def _of_measure(task: TaskRecord, metric: str) -> list[TaskFigure]:
    exact, units = values(task, task.rows[0], metric), units_of(task)
    found = []
    for row in task.rows:
        mine = values(task, row, metric)
        found.append((row, mine, _flipped(mine, exact), _paired(_by_unit(mine, units), _by_unit(exact, units))))
    ps = [paired.p for *_, paired in found[1:]]
    known = [p for p in ps if not np.isnan(p)]
    adjusted = iter(statistics.holm(known))
    holm = [nan, *(nan if np.isnan(p) else next(adjusted) for p in ps)]
    return [
        TaskFigure(
            task=task.name,
            metric=metric,
            scheme=row.label,
            name=row.name,
            items=len(task.items),
            units=max(units) + 1,
            score=float(mine.mean()),
            delta=paired.delta,
            low=paired.low,
            high=paired.high,
            p=p,
            lost=flipped[0] if flipped else None,
            won=flipped[1] if flipped else None,
            bits=row.bits,
            key_coverage=_share(row.key_pairs, row.pairs),
            value_coverage=_share(row.value_pairs, row.pairs),
            silent=task.silent / task.requests,
            audit="; ".join(row.failures) or "ok",
            is_baseline=row is task.rows[0],
        )
        for (row, mine, flipped, paired), p in zip(found, holm, strict=True)
    ]


def values(task: TaskRecord, row: TaskRow, metric: str) -> PerItem:
    """Of a measure, by item."""
    if metric != GOLD:
        return np.array(row.metrics[metric], dtype=np.float64)
    return np.array(
        [-item[gold] for item, gold in zip(row.loglikelihoods, task.gold, strict=True) if gold is not None], np.float64
    )


def units_of(task: TaskRecord) -> list[int]:
    """The unit that each item belongs to, from 0: items that share a context are one, since a scheme stores it once. Where contexts are
    empty, of one token, items are one that are the same document."""
    keys = task.hashes if task.context_tokens[1] <= 1 else task.prompts
    position = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [position[key] for key in keys]


def same_as_before(task: TaskRecord) -> list[int]:
    """Items, by their position in the data, whose document and context an earlier one has."""
    seen: set[tuple[str, str]] = set()
    found = []
    for item, one in zip(task.items, zip(task.hashes, task.prompts, strict=True), strict=True):
        if one in seen:
            found.append(item)
        seen.add(one)
    return found


def _by_unit(values: PerItem, units: Sequence[int]) -> Float64[np.ndarray, "units"]:
    """The mean of each unit."""
    return np.bincount(units, values) / np.bincount(units)


@dataclass(frozen=True)
class Paired:
    """How much more than exact, its 95 % interval, and p."""

    delta: float
    low: float
    high: float
    p: float


def _flipped(mine: PerItem, exact: PerItem) -> tuple[int, int] | None:
    """How many are lost, and won; None of what is not 0 or 1."""
    if not (np.isin(mine, (0, 1)).all() and np.isin(exact, (0, 1)).all()):
        return None
    return int(((exact == 1) & (mine == 0)).sum()), int(((exact == 0) & (mine == 1)).sum())


def _paired(mine: PerItem, exact: PerItem) -> Paired:
    """Over units; nan of numbers that are not finite."""
    if not (np.isfinite(mine).all() and np.isfinite(exact).all()):
        return Paired(nan, nan, nan, nan)
    if (flipped := _flipped(mine, exact)) is not None:  # a t interval of -1, 0 and 1 is one point where nothing flips
        lost, won = flipped
        return Paired((won - lost) / len(mine), *score_interval(lost, won, len(mine)), mcnemar(lost, won))
    found = statistics.paired_delta(mine, exact, np.ones(len(mine)))
    return Paired(found.delta, found.low, found.high, found.p)


@dataclass(frozen=True)
class Chance:
    """A measure that is 0 or 1, of choices, in which exact is not shown to be better than who guesses. share: of items that exact has right;
    guessed: by chance. units: that were tested."""

    metric: str
    share: float
    guessed: float
    units: int


def at_chance(task: TaskRecord) -> Iterator[Chance]:
    """By an exact binomial test over units, one-sided, at 5 %. What a scheme changes there says nothing of what it loses."""
    if not all(task.lengths):
        return
    guessed = float(np.mean([1 / len(item) for item in task.lengths]))
    for metric in task.rows[0].metrics:
        exact = values(task, task.rows[0], metric)
        if np.isin(exact, (0, 1)).all():
            right = _by_unit(exact, units_of(task))
            if stats.binomtest(int(right.sum() + 1e-9), len(right), guessed, alternative="greater").pvalue > 0.05:
                yield Chance(metric, float(exact.mean()), guessed, len(right))


def _share(part: Sequence[int], whole: Sequence[int]) -> float:
    return sum(part) / sum(whole) if sum(whole) else 0.0


def flips(record: Evaluation) -> Iterator[Flip]:
    """Every item of every measure that is 0 or 1 in which a scheme differs from exact."""
    for task in record.tasks:
        for metric in task.rows[0].metrics:
            exact = values(task, task.rows[0], metric)
            for row in task.rows[1:]:
                mine = values(task, row, metric)
                for i in np.flatnonzero(exact != mine):
                    if {exact[i], mine[i]} == {0.0, 1.0}:
                        yield Flip(
                            task=task.name,
                            metric=metric,
                            scheme=row.label,
                            item=task.items[i],
                            kind="lost" if exact[i] else "won",
                            gold=task.targets[i] if task.gold[i] is None else str(task.gold[i]),
                            exact=_answer(task, task.rows[0], metric, int(i)),
                            answer=_answer(task, row, metric, int(i)),
                        )


def _answer(task: TaskRecord, row: TaskRow, metric: str, item: int) -> str:
    """What was chosen, or written, in the sense of a metric: acc_norm divides by the characters of a choice."""
    name, _, filtered = metric.partition(",")
    if filtered in row.answers:
        return row.answers[filtered][item]
    lengths, likelihoods = np.array(task.lengths[item]), np.array(row.loglikelihoods[item])
    if not len(lengths):
        return "–"
    likelihoods = likelihoods[: len(lengths)]
    if name == "acc":
        return str(int(likelihoods.argmax()))
    if name == "acc_norm":
        return str(int((likelihoods / lengths).argmax()))
    return "–"
