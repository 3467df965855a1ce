"""The tables of tasks answered by schemes, and what stands above and below them."""

from collections.abc import Callable, Sequence

from kvdelta.analysis.reading.evaluations import (
    GOLD,
    Chance,
    Flip,
    TaskFigure,
    at_chance,
    figures,
    same_as_before,
    units_of,
)
from kvdelta.analysis.reading.tables import Table, chance, interval, number, table
from kvdelta.harness.records.evaluation import Evaluation, TaskRecord

NAMED = 5  # items in a note


def task_tables(record: Evaluation) -> dict[str, Table]:
    """By title, one a task."""
    rows = figures(record)
    return {title(task): task_table([row for row in rows if row.task == task.name]) for task in record.tasks}


def title(task: TaskRecord) -> str:
    shown = f"{task.num_fewshot} shown before each" if task.num_fewshot else "none shown before"
    shortest, longest = task.context_tokens
    span = str(shortest) if shortest == longest else f"{shortest} to {longest}"
    return (
        f"{task.name} (version {task.version}): {len(task.items)} item{'s' * (len(task.items) != 1)}, {shown}, "
        f"contexts of {span} tokens"
    )


def task_table(rows: Sequence[TaskFigure]) -> Table:
    def shown(cell: Callable[[TaskFigure], str]) -> Callable[[TaskFigure], str]:
        return lambda row: "–" if row.refused else cell(row)

    columns: dict[str, Callable[[TaskFigure], str]] = {
        "scheme": lambda row: row.scheme,
        "measure": lambda row: measure_name(row.metric),
        "score": lambda row: row.refused or score(row),
        "difference [95 %]": shown(_difference),
        "lost": shown(lambda row: "–" if row.lost is None or row.is_baseline else str(row.lost)),
        "won": shown(lambda row: "–" if row.won is None or row.is_baseline else str(row.won)),
        "p (Holm)": shown(lambda row: "–" if row.p != row.p or row.is_baseline else chance(row.p)),
        "bits": lambda row: f"{row.bits:.2f}",
        "read K": lambda row: f"{row.key_coverage:.3f}",
        "read V": lambda row: f"{row.value_coverage:.3f}",
    }
    return table(rows, columns)


def measure_name(metric: str) -> str:
    """lm_eval's "acc,none" without a filter that is none."""
    return metric.removesuffix(",none")


def score(row: TaskFigure) -> str:
    return f"{row.score:.3f}" if row.metric == GOLD or row.lost is None else f"{100 * row.score:.1f} %"


def _difference(row: TaskFigure) -> str:
    if row.is_baseline:
        return "baseline"
    if row.lost is None:
        return interval(row.delta, row.low, row.high, 3)
    return interval(100 * row.delta, 100 * row.low, 100 * row.high, 1)


def flip_table(rows: Sequence[Flip]) -> Table:
    columns: dict[str, Callable[[Flip], str]] = {
        "task": lambda row: row.task,
        "measure": lambda row: measure_name(row.metric),
        "scheme": lambda row: row.scheme,
        "item": lambda row: str(row.item),
        "": lambda row: row.kind,
        "right": lambda row: row.gold,
        "exact": lambda row: row.exact,
        "scheme's": lambda row: row.answer,
    }
    return table(rows, columns)


def heading(record: Evaluation) -> list[str]:
    settings = record.settings
    fed = settings.feed_last
    how = (
        f"a context's last {'token' if fed == 1 else f'{fed} tokens'}, and what follows it, read it as stored"
        if fed
        else "what follows a context reads it as stored"
    )
    return [
        record.model_name,
        f"lm-evaluation-harness {settings.versions['lm_eval']}, {settings.dtype} on {settings.device}; {how}",
    ]


def notes(record: Evaluation) -> list[str]:
    """What is to know of tasks and rows, a line each."""
    lines = []
    for task in record.tasks:
        if task.silent:
            share = 100 * task.silent / task.requests
            lines.append(
                f"{task.name}: {number(share)} % of its {task.requests} requests read nothing: continuations of one token, which the exact "
                "prefill predicts"
            )
        lines += _of_units(task)
        lines += [f"{task.name}, {measure_name(one.metric)}: {_at_chance(one)}" for one in at_chance(task)]
        if task.left_out:
            lines.append(f"{task.name}: left out, since no mean over figures of items: {', '.join(task.left_out)}")
        for row in task.rows:
            lines += [f"{task.name}, {row.label}: {_way_out(task, why)}" for why in row.failures]
    return lines


def _of_units(task: TaskRecord) -> list[str]:
    """Items that do not count as independent, in a line or two."""
    count, units, same = len(task.items), max(units_of(task)) + 1, same_as_before(task)
    lines = []
    if same:
        which = ", ".join(map(str, same[:NAMED])) + (", …" if len(same) > NAMED else "")
        lines.append(
            f"{task.name}: {len(same)} of {count} items are the same as one before (items {which}): they say nothing new"
        )
    if units < count:
        lines.append(
            f"{task.name}: its {count} items have {units} distinct context{'s' * (units != 1)}: differences, intervals and p are over the means of "
            "contexts, since what shares one is not independent"
        )
    return lines


def _at_chance(found: Chance) -> str:
    share, guessed = f"{100 * found.share:.1f} %", f"{100 * found.guessed:.1f} %"
    if found.share <= found.guessed:
        return f"exact has {share}, no better than guessing ({guessed}): what flips there says nothing of what a scheme loses"
    return (
        f"exact has {share}; too few items ({found.units}) to show that it is better than guessing ({guessed}): what flips there says little of "
        "what a scheme loses"
    )


def _way_out(task: TaskRecord, why: str) -> str:
    if "from packed storage" not in why:
        return why
    return (
        f"{why}: its residual rule, or the other's, keeps contexts of up to {task.context_tokens[1]} tokens exact; show more items with "
        "--num-fewshot, or take a shorter residual"
    )


LEGEND = """Differences from exact on the same items, in points of 100 where a measure is 0 or 1: there with Tango's score interval and p of
McNemar's exact test, which hold for independent items; else with a paired t interval and its p. p by Holm over the schemes.
lost: exact was right, the scheme is not; won: the other way round. NLL of the right choice: nats. bits: a number, over the
contexts, exact tokens at 16. read: share of attended (query, token) pairs from packed storage, over all predictions that
count, the exact prefill's own among them."""
