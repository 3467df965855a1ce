"""Of docs/lm-eval.md: tasks answered from stored contexts."""

from functools import cache

from kvdelta.analysis.reading.evaluations import GOLD, TaskFigure, figures
from kvdelta.harness.records.evaluation import load_evaluation
from tests.docs.claiming import EXIT_CODES, Claim, Unchecked
from tests.docs.records import RESULTS

EXACT_MATCH = "exact_match,number"


@cache
def figure(folder: str, task: str, metric: str, scheme: str) -> TaskFigure:
    """metric: how its name begins."""
    rows = figures(load_evaluation(RESULTS / "lm-eval-cpu" / folder))
    return next(row for row in rows if (row.task, row.scheme) == (task, scheme) and row.metric.startswith(metric))


def costs():
    told, changed = figure("tasks", "endings", GOLD, "kivi2"), figure("tasks", "endings", "acc_norm", "kivi2")
    return told.delta, told.low, told.high, changed.lost == changed.won == 0


def sums():
    choices, texts = figure("tasks", "endings", "acc_norm", "int4"), figure("tasks", "sums", EXACT_MATCH, "int4")
    right = figure("tasks", "sums", EXACT_MATCH, "exact")
    return texts.lost or 0, right.score * right.items, choices.lost == choices.won == 0


def kivi4_loses_none():
    return [figure("tasks", "sums", EXACT_MATCH, "kivi4").lost == 0]


def room():
    same = figure("tasks", "endings", "acc_norm", "int4")
    assert same.low < 0
    return same.items, -100 * same.low, same.lost == same.won == 0


CLAIMS = (
    Claim("{} items that all stay the same leave room for a loss of {} points", room),
    Claim("Two tasks of {} items each", lambda: [figure("tasks", "endings", "acc", "exact").items]),
    Claim("`acc_norm` changes on no item, while `kivi2` costs {} nats [{}, {}] a choice", costs),
    Claim("`int4` changes no choice in `acc_norm`, and loses {} of the {} sums that exact gets right", sums),
    Claim("`kivi4`, whose newest 128 tokens stay exact, loses none", kivi4_loses_none),
    Claim(
        '`kivi2` "wins" {} points on a task',
        lambda: [100 * figure("letters", "endings-letters", "acc", "kivi2").delta],
    ),
)

UNCHECKED = (
    Unchecked("the score interval of Tango (1998)", "a year"),
    Unchecked("differ in a 0/1 measure", "a kind of measure"),
    Unchecked("made for its version 0.4.13", "of pyproject.toml"),
    Unchecked("KIVI's 128 are more than a question of HellaSwag has", "a setting of KIVI"),
    Unchecked("the command ends with 3", EXIT_CODES),
    Unchecked("(an exact test at 5 %)", "the level of a test"),
    Unchecked("log-likelihoods to 1e-5 in float32", "held by tests/harness/evaluation"),
)
