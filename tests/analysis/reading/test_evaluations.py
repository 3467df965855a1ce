"""Paired figures of tasks, from a record made by hand."""

import numpy as np
import pytest
from scipy import stats

from kvdelta.analysis.reading import evaluation_tables, evaluations
from kvdelta.analysis.reading.evaluations import GOLD
from kvdelta.harness import statistics
from kvdelta.harness.flips import score_interval
from kvdelta.harness.records.evaluation import Evaluation, EvaluationSettings, TaskRecord, TaskRow
from kvdelta.harness.records.run import LayerReads

ITEMS = 12
LENGTHS = [4, 8]


def likelihoods(seed):
    return np.random.default_rng(seed).uniform(-9, -1, (ITEMS, 2)).tolist()


def scored(label, seed, gold, failures=()):
    found = likelihoods(seed)
    right = [float(np.argmax(item) == at) for item, at in zip(found, gold, strict=True)]
    normed = [float(np.argmax(np.divide(item, LENGTHS)) == at) for item, at in zip(found, gold, strict=True)]
    return TaskRow(
        label=label, name=label, lossless=label == "exact", metrics={"acc,none": right, "acc_norm,none": normed},
        loglikelihoods=found, answers={}, pairs=[10] * ITEMS, key_pairs=[6] * ITEMS, value_pairs=[3] * ITEMS,
        reads={0: LayerReads(pairs=10 * ITEMS, key=6 * ITEMS, value=3 * ITEMS)}, bits=4.25, failures=list(failures),
    )  # fmt: skip


def task(rows, gold, **changes):
    return TaskRecord(**{
        "name": "endings", "version": "1", "output": "multiple_choice", "num_fewshot": 5, "settings": {}, "context_tokens": (40, 60),
        "items": [3 * i for i in range(ITEMS)], "hashes": [*map(str, range(ITEMS))], "prompts": [*map(str, range(ITEMS))], "gold": gold,
        "targets": ["x"] * ITEMS, "lengths": [LENGTHS] * ITEMS, "silent": 0, "requests": 24, "higher_is_better": {}, "rows": rows,
    } | changes)  # fmt: skip


def record(*tasks):
    settings = EvaluationSettings(
        model={}, tasks={}, limit=None, num_fewshot=None, feed_last=0, chat_template=None, device="cpu", dtype="float32",
        attention="sdpa", seed=0, contenders=[], versions={"lm_eval": "0.4.13"}, commit=None, measures=2,
    )  # fmt: skip
    return Evaluation(
        kvdelta="",
        command="",
        commit=None,
        model_name="tiny",
        layers=1,
        threads=1,
        settings=settings,
        tasks=list(tasks),
    )


@pytest.fixture
def gold():
    return np.random.default_rng(9).integers(0, 2, ITEMS).tolist()


@pytest.fixture
def endings(gold):
    return task([scored("exact", 0, gold), scored("int4", 1, gold), scored("int2", 2, gold)], gold)


def test_each_measure_is_paired_with_exact(endings, gold):
    rows = {(row.metric, row.scheme): row for row in evaluations.figures(record(endings))}
    assert [metric for metric, scheme in rows if scheme == "exact"] == ["acc,none", "acc_norm,none", GOLD]
    exact, int4 = (np.array(row.metrics["acc,none"]) for row in endings.rows[:2])
    row = rows["acc,none", "int4"]
    assert row.score == pytest.approx(int4.mean())
    assert row.delta == pytest.approx((int4 - exact).mean())
    assert row.lost == sum((exact == 1) & (int4 == 0)) > 0
    assert row.won == sum((exact == 0) & (int4 == 1)) > 0
    assert row.lost is not None
    assert row.won is not None
    assert (row.low, row.high) == score_interval(row.lost, row.won, ITEMS)
    assert (row.key_coverage, row.value_coverage) == (0.6, 0.3)


def test_the_right_choice_counts_by_its_log_likelihood(endings, gold):
    rows = {row.scheme: row for row in evaluations.figures(record(endings)) if row.metric == GOLD}
    exact, *others = (
        np.array([-item[at] for item, at in zip(row.loglikelihoods, gold, strict=True)]) for row in endings.rows
    )
    found = [stats.ttest_rel(mine, exact) for mine in others]
    assert rows["int4"].delta == pytest.approx((others[0] - exact).mean())
    corrected = statistics.holm([one.pvalue for one in found])
    assert [rows[name].p for name in ("int4", "int2")] == pytest.approx(corrected)
    assert rows["int4"].lost is None
    low, high = stats.ttest_rel(others[0], exact).confidence_interval(0.95)
    assert (rows["int4"].low, rows["int4"].high) == (pytest.approx(low), pytest.approx(high))


def test_where_nothing_flips_the_interval_has_a_width(endings):
    endings.rows[1].metrics = endings.rows[0].metrics
    row = next(row for row in evaluations.figures(record(endings)) if row.scheme == "int4")
    assert (row.delta, row.p) == (0, 1)
    assert row.high == -row.low == pytest.approx(1.96**2 / (ITEMS + 1.96**2), rel=1e-3)
    assert "0.0 [-24.2, +24.2]" in str(evaluation_tables.task_tables(record(endings)))


def test_identical_items_count_once(gold):
    rows = [scored("exact", 0, [gold[0]] * ITEMS), scored("int4", 1, [gold[0]] * ITEMS)]
    for row in rows:
        row.loglikelihoods = row.loglikelihoods[:1] * ITEMS
        row.metrics = {name: item[:1] * ITEMS for name, item in row.metrics.items()}
    one = task(rows, [gold[0]] * ITEMS, hashes=["a"] * ITEMS, prompts=["b"] * ITEMS)
    row = next(row for row in evaluations.figures(record(one)) if (row.metric, row.scheme) == (GOLD, "int4"))
    assert row.units == 1
    assert np.isnan([row.low, row.p]).all()
    notes = " ".join(evaluation_tables.notes(record(one)))
    assert "11 of 12 items are the same as one before (items 3, 6, 9, 12, 15, …)" in notes
    assert "its 12 items have 1 distinct context:" in notes


def test_items_of_one_context_are_one_unit(endings, gold):
    """Two items a context: the figures are those of a task of the contexts' means."""
    units = [i // 2 for i in range(ITEMS)]
    paired = task(endings.rows, gold, prompts=[*map(str, units)])
    exact, int4 = (
        np.array([-item[at] for item, at in zip(row.loglikelihoods, gold, strict=True)]).reshape(-1, 2).mean(1)
        for row in endings.rows[:2]
    )
    found = stats.ttest_rel(int4, exact)
    row = next(row for row in evaluations.figures(record(paired)) if (row.metric, row.scheme) == (GOLD, "int4"))
    assert (row.units, row.items) == (ITEMS // 2, ITEMS)
    assert (row.low, row.high) == pytest.approx(tuple(found.confidence_interval(0.95)))
    notes = " ".join(evaluation_tables.notes(record(paired)))
    assert "its 12 items have 6 distinct contexts" in notes
    assert "the same as one before" not in notes
    empty = task(endings.rows, gold, prompts=[""] * ITEMS, context_tokens=(1, 1))
    assert evaluations.figures(record(empty))[0].units == ITEMS


def test_p_is_corrected_for_the_schemes(gold):
    right = [1.0] * ITEMS
    rows = [scored(name, 0, gold) for name in ("exact", "int4", "int2", "hqq2")]
    for row, wrong in zip(rows, (0, 6, 8, 0), strict=True):
        row.metrics = {"acc,none": [0.0] * wrong + right[wrong:]}
    found = {row.scheme: row.p for row in evaluations.figures(record(task(rows, gold))) if row.metric == "acc,none"}
    assert found["int2"] == pytest.approx(3 * 2 / 2**8)
    assert found["int4"] == pytest.approx(2 * 2 / 2**6)
    assert found["hqq2"] == 1


def test_flips_say_which_item_and_what_was_chosen(endings, gold):
    found = list(evaluations.flips(record(endings)))
    rows = evaluations.figures(record(endings))
    for metric, lengths in (("acc,none", [1, 1]), ("acc_norm,none", LENGTHS)):
        figure = next(row for row in rows if (row.metric, row.scheme) == (metric, "int4"))
        mine = [one for one in found if (one.metric, one.scheme) == (metric, "int4")]
        assert sum(one.kind == "lost" for one in mine) == figure.lost
        assert sum(one.kind == "won" for one in mine) == figure.won
        for one in mine:
            at = endings.items.index(one.item)
            chosen = [int(np.argmax(np.divide(row.loglikelihoods[at], lengths))) for row in endings.rows[:2]]
            assert [one.exact, one.answer] == [str(choice) for choice in chosen]
            assert (one.exact == one.gold) == (one.kind == "lost")


def test_flips_of_what_was_written():
    rows = [
        TaskRow(label=label, name=label, lossless=False, metrics={"exact_match,number": [right]}, loglikelihoods=[],
                answers={"number": [said]}, pairs=[4], key_pairs=[2], value_pairs=[2], reads={}, bits=4.0)
        for label, right, said in (("exact", 1.0, "7"), ("int4", 0.0, "[invalid]"))
    ]  # fmt: skip
    one = task(
        rows, [None], output="generate_until", items=[5], hashes=[""], prompts=[""], targets=["#### 7"], lengths=[[]]
    )
    (flip,) = evaluations.flips(record(one))
    assert (flip.item, flip.kind, flip.gold, flip.exact, flip.answer) == (5, "lost", "#### 7", "7", "[invalid]")
    assert evaluations.measures(one) == ["exact_match,number"]


def test_a_row_that_cannot_be_believed_shows_no_score(gold):
    failed = scored("kivi2", 3, gold, ["reads no keys from packed storage"])
    one = record(task([scored("exact", 0, gold), failed], gold, silent=6, left_out=["f1"]))
    (header, body) = next(iter(evaluation_tables.task_tables(one).values()))
    line = dict(zip(header, next(row for row in body if row[0] == "kivi2"), strict=True))
    assert line["score"] == "audit failed"
    assert line["difference [95 %]"] == line["p (Holm)"] == "–"
    assert line["read K"] == "0.600"
    notes = [line for line in evaluation_tables.notes(one) if "guessing" not in line]
    assert "25.0 % of its 24 requests read nothing" in notes[0]
    assert "left out" in notes[1]
    assert "kivi2: reads no keys from packed storage: " in notes[2]
    assert "--num-fewshot" in notes[2]
    assert "5 shown before each, contexts of 40 to 60 tokens" in evaluation_tables.title(one.tasks[0])


def test_losses_that_are_no_numbers_have_no_interval(gold):
    broken = scored("int2", 4, gold, ["NaN or infinite log-likelihoods"])
    broken.loglikelihoods[2] = [np.nan, np.nan]
    rows = evaluations.figures(record(task([scored("exact", 0, gold), broken], gold)))
    row = next(row for row in rows if (row.metric, row.scheme) == (GOLD, "int2"))
    assert np.isnan([row.score, row.delta, row.p]).all()
    assert row.plain()["score"] is None


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (5, "no better than guessing (50.0 %)"), (6, "no better than guessing (50.0 %)"),
        (9, "exact has 75.0 %; too few items (12) to show that it is better than guessing (50.0 %)"), (10, ""), (12, ""),
    ],
)  # fmt: skip
def test_who_is_not_shown_to_be_better_than_guessing_is_said(gold, right, said):
    """Of 12 items with two choices 10 and more are 79 of 4096."""
    exact = scored("exact", 0, gold)
    exact.metrics = {"acc,none": [1.0] * right + [0.0] * (ITEMS - right)}
    one = task([exact, exact.model_copy(update={"label": "int4"})], gold)
    assert [found.metric for found in evaluations.at_chance(one)] == ["acc,none"] * bool(said)
    notes = " ".join(evaluation_tables.notes(record(one)))
    assert said in notes
    assert ("guessing" in notes) == bool(said)
