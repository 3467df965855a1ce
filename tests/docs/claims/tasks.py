"""Of docs/tasks.md: facts that are lost."""

from functools import cache

from kvdelta.analysis.reading.tasks import TaskRow, task_rows
from kvdelta.harness.records.tasks import load_tasks
from kvdelta.harness.tasks import difficulty
from tests.docs.claiming import Claim, Unchecked
from tests.docs.records import RESULTS, rows


@cache
def answered(task: str, scheme: str, model: str = "smollm2") -> TaskRow:
    found = task_rows(load_tasks(RESULTS / "tasks-cpu" / model))
    return next(row for row in found if (row.task, row.scheme) == (task, scheme))


def needles_of_int8():
    return [answered(task, "int8").lost == 0 for task in ("niah-single", "niah-multikey", "kv")]


def given_back():
    """Perplexity of the demo, then samples and digits of the needle; the words say that none is given back."""
    needle = answered("niah-single", "kivi2")
    digits = int(needle.said.split()[-1])
    return rows("demo")["kivi2"].delta_pct, needle.samples, digits, needle.match == 0


def among_needles():
    int4, exact = answered("niah-multikey", "int4"), answered("niah-multikey", "exact")
    return 2, int4.delta_nll, int4.lost, exact.match, rows("demo")["int4"].delta_pct < 2


def keys_of_qwen():
    exact, kivi2, int4 = (answered("kv", scheme, "qwen") for scheme in ("exact", "kivi2", "int4"))
    return [int(exact.said.split()[-1]), exact.match, exact.samples, kivi2.lost, int4.lost, kivi2.p_match_holm > 0.05]


@cache
def answered_on_gpu(task: str, scheme: str, length: int = 4096) -> TaskRow:
    found = task_rows(load_tasks(RESULTS / "tasks-h200"))
    return next(row for row in found if (row.task, row.scheme, row.length) == (task, scheme, length))


def among_keys_at_length():
    exact, kivi4, turbo4, int4, kivi2 = (
        answered_on_gpu("niah-multikey", scheme) for scheme in ("exact", "kivi4", "turbo4", "int4", "kivi2")
    )
    deltas = [one.delta_nll for one in (kivi4, turbo4, int4, kivi2)]
    return [exact.length, exact.samples, exact.match, kivi4.match, turbo4.match, int4.match, kivi2.match, *deltas]


def told_by_loss_alone():
    int4 = answered_on_gpu("niah-multikey", "int4")
    return int4.p_holm < 0.0001, int4.p_match_holm > 0.05


def in_short():
    exact, int8, int4, kivi2 = (answered("niah-single", scheme) for scheme in ("exact", "int8", "int4", "kivi2"))
    digits = int(exact.said.split()[-1])
    return exact.match, exact.samples, digits, int4.match, int8.match == exact.match, kivi2.match == 0


CLAIMS = (
    Claim(
        "SmolLM2 gives back {} of {} numbers of {} digits with exact and `int8`, {} with `int4` and none with `kivi2`",
        in_short,
    ),
    Claim(
        "matches in {} % of them or less, and in at least {} % of those that guessing does not give",
        lambda: [100 * difficulty.HIGH, 100 * difficulty.LOW],
    ),
    Claim("{} samples of a task, 512 tokens, on one CPU core", lambda: [answered("niah-single", "exact").samples]),
    Claim("`int8` loses no needle and no value", needles_of_int8),
    Claim(
        "`kivi2` costs {} % of perplexity on the packaged text ([demo]) and gives back none of {} numbers of {} digits",
        given_back,
    ),
    Claim(
        "`int4` costs less than {} % there; of a needle among needles it loses {} nats a token and {} of {} matches",
        among_needles,
    ),
    Claim(
        "At {} tokens ({} samples a task) a needle among needles is given back {} times by exact, {} by `kivi4`, {} by `turbo4`, {} by `int4` and "
        "{} by `kivi2`, with {}, {}, {} and {} nats a token of the answer more",
        among_keys_at_length,
    ),
    Claim("the loss shows what the matches of `int4` do not", told_by_loss_alone),
    Claim("every key of {} characters right, {} of {}, loses {} with `kivi2` and {} with `int4`", keys_of_qwen),
)

UNCHECKED: tuple[Unchecked, ...] = (
    Unchecked(
        "of 20 samples of `niah-multikey` (level 2, 384 tokens) 12 match, and 9 are generated right",
        "SmolLM2, seed 0, depths 5: a SchemeCache filled with the context, then model.generate of as many tokens as the answer has; "
        "no record holds generated answers",
    ),
)
