"""A run of tasks: exact is its own baseline to the bit, a run that is killed goes on, what fails fails its own row."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import DynamicCache

from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.options import Options
from kvdelta.harness.records import journal
from kvdelta.harness.records.tasks import JOURNAL, TASKS_FILE, load_tasks, save_tasks
from kvdelta.harness.records.verify import verify
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.harness.tasks.running import run_tasks

HOW = TaskOptions(tasks=("niah-multikey", "kv"), lengths=(700,), depths=2, samples=3, difficulty="1")
SCHEMES = ["exact", "int8", "asym2"]


@pytest.fixture
def options(story, tmp_path):
    return Options(text=str(story), device="cpu", out=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def done(loaded, story, tmp_path_factory):
    """A run, and its folder."""
    folder = tmp_path_factory.mktemp("tasks") / "run"
    return run_tasks(SCHEMES, Options(text=str(story), device="cpu", out=str(folder)), HOW, loaded=loaded)


def figures(record):
    return [sample.model_dump() for sample in record.samples]


def test_exact_is_its_own_baseline_and_others_move(done):
    record, folder = done
    assert (record.status, record.planned, len(record.samples)) == ("complete", 6, 6)
    for sample in record.samples:
        assert sample.kl[0] == 0
        assert 0 < sample.kl[1] < sample.kl[2]
        assert sample.nll[2] != sample.nll[0]
        assert sample.context <= 700
        assert [side[2] for side in (sample.key_pairs, sample.value_pairs, sample.pairs)] == [sample.pairs[0]] * 3
    assert [sample.depth for sample in record.samples[:3]] == [0.0, 1.0, 0.0]
    assert record.audit.identity_is_exact is True
    assert record.audit.failures == {}
    assert record.audit.zeroed_codes_move_logits == {"int8": True, "asym2": True}
    assert [len(cell.bytes) for cell in record.cells] == [3, 3]
    assert load_tasks(folder) == record


def test_a_second_exact_differs_in_nothing(loaded, options):
    twin = SchemeContender.of("int4")
    lossless = ForeignContender("again", lambda config: DynamicCache(config=config), lossless=True)
    record, _ = run_tasks(["exact", lossless, twin], options, HOW, loaded=loaded)
    for sample in record.samples:
        assert sample.nll[1] == sample.nll[0]
        assert sample.match[1] == sample.match[0]
        assert (sample.kl[1], sample.key_pairs[1], sample.value_pairs[1]) == (0, 0, 0)
    assert record.audit.failures == {}


def test_the_same_command_reads_its_record_and_another_is_refused(done, loaded, story, refused):
    record, folder = done
    notes = []
    options = Options(text=str(story), device="cpu", out=str(folder))
    with refused("holds another run"):
        run_tasks(SCHEMES, options, replace(HOW, samples=4), loaded=loaded)
    again, _ = run_tasks(SCHEMES, options, HOW, loaded=loaded, on_note=notes.append)
    assert again == record
    assert "complete; their record is printed again" in notes[-1]


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_is_stopped_goes_on_to_the_same_record(done, loaded, options, after):
    class Stopped(Exception):
        pass

    def stop(done, planned, what):
        assert planned == 6
        if done == after:
            raise Stopped

    with pytest.raises(Stopped):
        run_tasks(SCHEMES, options, HOW, loaded=loaded, on_sample=stop)
    assert len(load_tasks(options.out).samples) == after
    scored = []
    record, _ = run_tasks(
        SCHEMES, options, HOW, loaded=loaded, on_sample=lambda done, planned, what: scored.append(done)
    )
    assert scored == list(range(after + 1, 7))
    assert figures(record) == figures(done[0])
    assert record.audit == done[0].audit
    assert record.cells == done[0].cells


class Stopped(Exception):
    pass


def stopped_after_three(loaded, options):
    """The journal of a run that was stopped."""

    def stop(done, planned, what):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run_tasks(SCHEMES, options, HOW, loaded=loaded, on_sample=stop)
    return Path(options.out) / JOURNAL


def test_a_torn_journal_loses_its_last_sample_alone(done, loaded, options):
    path = stopped_after_three(loaded, options)
    journal.cut(path, journal.size(path) - 5)
    record, _ = run_tasks(SCHEMES, options, HOW, loaded=loaded)
    assert figures(record) == figures(done[0])


def test_a_damaged_line_of_the_journal_is_named_and_what_is_before_it_kept(done, loaded, options, refused):
    path = stopped_after_three(loaded, options)
    lines = path.read_bytes().splitlines(keepends=True)
    sample = [i for i, line in enumerate(lines) if b'"sample":{' in line][1]
    lines[sample] = b"x" + lines[sample]
    path.write_bytes(b"".join(lines))
    with refused(rf"tasks\.journal is damaged: line {sample + 1} is not as it was written"):
        load_tasks(options.out)
    assert [one.damage != [] for one in verify(Path(options.out))] == [True]
    notes, scored = [], []

    def stop_again(done, planned, what):
        scored.append(done)
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run_tasks(SCHEMES, options, HOW, loaded=loaded, on_note=notes.append, on_sample=stop_again)
    assert scored == [2, 3, 4]
    assert any("is damaged: line" in note for note in notes)
    assert len(load_tasks(options.out).samples) == 4
    record, _ = run_tasks(SCHEMES, options, HOW, loaded=loaded)
    assert figures(record) == figures(done[0])
    assert record.audit == done[0].audit


def test_what_raises_or_is_not_finite_fails_its_own_row(loaded, options):
    def broken(config):
        raise RuntimeError("no such cache")

    class Infinite(DynamicCache):
        def update(self, keys, values, layer, *args, **kwargs):
            keys, values = super().update(keys, values, layer, *args, **kwargs)
            return keys, values * math.inf

    foreign = [
        ForeignContender("broken", broken),
        ForeignContender("infinite", lambda config: Infinite(config=config)),
    ]
    record, _ = run_tasks(["exact", *foreign, "int4"], options, HOW, loaded=loaded)
    errors = [contender.error for contender in record.contenders]
    assert errors[0] is errors[3] is None
    assert errors[1] == "RuntimeError: no such cache"
    assert "NaN or infinite logits in sample 0 of niah-multikey" in errors[2]
    assert all(math.isnan(sample.nll[i]) and not sample.match[i] for sample in record.samples for i in (1, 2))
    assert all(math.isfinite(sample.nll[3]) for sample in record.samples)
    assert set(record.audit.failures) == {"broken", "infinite"}


def test_a_cache_that_nobody_reads_is_no_score(loaded, options):
    """A foreign cache that gives back what it was given: its row must not look lossless for that."""
    idle = ForeignContender("idle", lambda config: DynamicCache(config=config))
    record, _ = run_tasks(["exact", idle], options, HOW, loaded=loaded)
    assert "cache not read" in record.audit.failures["idle"][0]


def test_what_the_model_cannot_is_not_scored(loaded, options):
    notes = []
    record, folder = run_tasks(
        ["int4"],
        options,
        replace(HOW, tasks=("niah-multikey",), difficulty="auto", search=2),
        loaded=loaded,
        on_note=notes.append,
    )
    assert record.cells[0].cannot
    assert (record.samples, record.planned, record.status) == ([], 0, "complete")
    assert "niah-multikey, 700 tokens: the model cannot: " in notes[0]
    assert load_tasks(folder) == record


def test_a_sample_says_which_others_ask_of_its_context(done, loaded, tmp_path):
    assert len({sample.context_ids for sample in done[0].samples}) == 6
    rows = [{"context": "apples are red. " * 20, "question": f"What {i}?", "answer": "1"} for i in range(2)]
    rows.append({**rows[0], "context": "pears are green. " * 20})
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = Options(device="cpu", out=str(tmp_path / "run"))
    record, _ = run_tasks(["int4"], options, TaskOptions(task_file=str(path)), loaded=loaded)
    one, other, third = (sample.context_ids for sample in record.samples)
    assert one == other != third
    assert len({sample.ids for sample in record.samples}) == 3


def test_stepwise_stores_the_question_too(loaded, options, done):
    stepwise = replace(options, protocol="stepwise", step=1)
    record, _ = run_tasks(SCHEMES, stepwise, HOW, loaded=loaded)
    for sample, other in zip(record.samples, done[0].samples, strict=True):
        assert sample.ids == other.ids
        assert sample.nll[2] != other.nll[2]
        assert sample.nll[0] == pytest.approx(other.nll[0], rel=1e-4)


def test_a_task_file_alone_needs_no_haystack(loaded, tmp_path, refused):
    rows = [{"context": f"{i} apples are red. " * 20, "question": "How many?", "answer": str(i)} for i in range(3)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = Options(device="cpu", out=str(tmp_path / "run"), text="gone")
    record, _ = run_tasks(["int4"], options, TaskOptions(task_file=str(path)), loaded=loaded)
    assert [(sample.task, sample.length, sample.number) for sample in record.samples] == [
        ("mine", 0, i) for i in range(3)
    ]
    assert record.settings.measured["task_file"] == record.text_source["sha256"]
    assert record.text_name == "mine.jsonl"
    path.write_text(path.read_text().replace("red", "sad"))
    with refused("holds another run"):
        run_tasks(["int4"], options, TaskOptions(task_file=str(path)), loaded=loaded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("niah",)}, "task 'niah': choose niah-single, "),
        ({"lengths": (64,)}, "length 64: contexts have 128 tokens or more"),
        ({"depths": 0}, "0 depths"),
        ({"samples": 0}, "0 samples leave nothing to score"),
        ({"search": 0}, "0 samples find no difficulty"),
        ({"difficulty": "hard"}, "difficulty 'hard': give auto, or a level from 1"),
        ({"difficulty": "9"}, "difficulty '9': give auto"),
    ],
)
def test_bad_input(refused, changes, message):
    with refused(message):
        TaskOptions(**changes)


def test_bad_input_with_a_model(loaded, options, refused):
    with refused("single-pass answers without reading the cache"):
        run_tasks(["int4"], replace(options, protocol="single-pass"), HOW, loaded=loaded)
    with refused("the model has 4096 positions"):
        run_tasks(["int4"], options, replace(HOW, lengths=(5000,)), loaded=loaded)
    with refused("task kv has 4[0-9]{3} tokens with its question and answer, the model has 4096 positions"):
        run_tasks(["int4"], options, replace(HOW, tasks=("kv",), lengths=(4090,)), loaded=loaded)
    with refused(
        "contexts have 130 tokens, too few for kivi2:residual_length=256, which needs 257 to .* a longer --length"
    ):
        run_tasks(["kivi2:residual_length=256"], options, replace(HOW, lengths=(130,)), loaded=loaded)


def test_a_line_whose_context_is_too_short_is_named(loaded, tmp_path, refused):
    rows = [
        {"context": f"{i} " + "apples are red. " * n, "question": "How many?", "answer": "1"}
        for i, n in enumerate((20, 1))
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = Options(device="cpu", out=str(tmp_path / "run"))
    with refused(
        "mine.jsonl, line 2: its context has 18 tokens, too few for kivi2, which needs [0-9]+ to .* a longer context"
    ):
        run_tasks(["kivi2"], options, TaskOptions(task_file=str(path)), loaded=loaded)
    assert not (tmp_path / "run").exists()


def test_damage_is_found(done, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(done[1], copy)
    (one,) = verify(copy)
    assert (one.damage, one.hashed) == ([], True)
    assert "3 schemes, 6 of 6 samples, complete" in one.holds
    path = copy / TASKS_FILE
    path.write_text(path.read_text().replace('"found": [', '"found": [ ', 1))
    assert [one.damage for one in verify(copy)] == [[]]  # a space changes no content
    content = json.loads(path.read_text())
    content["samples"][0]["nll"][1] += 1e-3
    path.write_text(json.dumps(content))
    (one,) = verify(copy)
    assert "is not as it was written" in one.damage[0]


def emptied(record):
    """Of every list that has one figure a scheme."""
    record.contenders.clear()
    for sample in record.samples:
        for name in ("nll", "kl", "match", "found", "key_pairs", "value_pairs", "pairs"):
            getattr(sample, name).clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.samples[0].nll.pop(), "a sample has not a figure for each of its schemes"),
        (
            lambda record: record.samples[0].found.__setitem__(0, 2),
            "a figure for each of its schemes, or one that cannot be",
        ),
        (lambda record: record.samples[0].nll.__setitem__(0, math.nan), "one that cannot be"),
        (lambda record: record.samples[0].kl.__setitem__(2, math.nan), "one that cannot be"),
        (lambda record: setattr(record.samples[0], "context", 0), "one that cannot be"),
        (lambda record: setattr(record.samples[0], "chance", 1.5), "one that cannot be"),
        (lambda record: record.samples.append(record.samples[0]), "it has a sample or a task twice"),
        (lambda record: record.cells.append(record.cells[0]), "it has a sample or a task twice"),
        (lambda record: record.samples.pop(), "it has 5 of 6 samples"),
        (lambda record: record.cells.pop(), "a sample of a task that it does not name"),
        (lambda record: setattr(record.cells[0], "cannot", True), "a sample of a task that it does not name"),
        (lambda record: (record.samples.clear(), record.contenders.clear()), "not the bytes of each scheme"),
        (lambda record: emptied(record), "its schemes are none"),
        (lambda record: record.contenders[1].quantized_sides.append("both"), "sides that no cache has"),
        (lambda record: setattr(record.contenders[0], "error", "it broke"), "not exact first"),
        (lambda record: setattr(record.cells[0].bytes[1]["key"], "elements", 0), "not the bytes of each scheme"),
        (
            lambda record: setattr(record.cells[1].bytes[1]["key"], "counted", math.nan),
            "not the bytes|not a run record",
        ),
        (lambda record: record.cells[0].bytes.clear(), "not the bytes of each scheme"),
        (
            lambda record: (record.samples.clear(), record.cells.clear(), setattr(record, "planned", 0)),
            "of 0 of 0 tasks",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(done, tmp_path, refused, change, message):
    record = done[0].model_copy(deep=True)
    change(record)
    (tmp_path / "bad").mkdir()
    save_tasks(record, tmp_path / "bad")
    with refused(message):
        load_tasks(tmp_path / "bad")
    (one,) = verify(tmp_path)
    assert re.search(message, one.damage[0])
