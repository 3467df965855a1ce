"""The record of tasks: what was answered is in it, and the same call finds it again."""

import json

import pytest
import yaml

from kvdelta.harness.evaluation import evaluating
from kvdelta.harness.evaluation.evaluating import evaluate
from kvdelta.harness.evaluation.options import EvaluationOptions
from kvdelta.harness.options import Options
from kvdelta.harness.records import hashes
from kvdelta.harness.records.evaluation import EVALUATION_FILE, load_evaluation
from kvdelta.harness.records.verify import verify

SCHEMES = ["int4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]


@pytest.fixture
def run(task_model, task_folder, tmp_path):
    def evaluated(*tasks, schemes=SCHEMES, out="run", notes=None, **how):
        options = Options(device="cpu", out=str(tmp_path / out))
        asked = EvaluationOptions(tasks, str(task_folder), **how)
        on_note = (lambda text: None) if notes is None else notes.append
        return evaluate(schemes, options, asked, loaded=task_model, on_note=on_note)

    return evaluated


def test_items_of_every_scheme_are_kept(run):
    record, folder = run("endings", "numbers")
    assert load_evaluation(folder) == record
    endings, numbers = record.tasks
    assert endings.items == [0, 1, 2, 3]
    assert len(set(endings.prompts)) == len(set(endings.hashes)) == 4
    assert [row.label for row in endings.rows] == ["exact", *SCHEMES]
    for row in endings.rows:
        assert len(row.metrics["acc,none"]) == len(row.loglikelihoods) == 4
        chosen = [max(range(3), key=item.__getitem__) for item in row.loglikelihoods]
        right = [float(one == gold) for one, gold in zip(chosen, endings.gold, strict=True)]
        assert row.metrics["acc,none"] == right
        assert not row.failures
        reads = row.reads.values()
        assert (sum(row.pairs), sum(row.key_pairs)) == (sum(r.pairs for r in reads), sum(r.key for r in reads))
    assert endings.context_tokens == (40, 43)
    assert endings.rows[0].bits == 16
    assert endings.rows[1].bits == 5
    assert numbers.rows[0].answers["number"] != numbers.rows[1].answers["number"]
    assert record.zeroed_codes_move_logits == dict.fromkeys(SCHEMES, True)
    assert [one.damage for one in verify(folder)] == [[]]
    assert str(folder.parent) not in json.dumps(record.model_dump())


def test_the_same_call_reads_the_record_and_other_settings_are_refused(run, refused, monkeypatch):
    record, folder = run("endings")
    monkeypatch.setattr(evaluating, "_answer", None)
    notes = []
    assert run("endings", notes=notes) == (record, folder)
    assert "answered; its record is printed again" in notes[-1]
    with refused("differs in feed_last"):
        run("endings", feed_last=1)


def test_what_was_interrupted_goes_on_after_its_last_task(run, monkeypatch):
    whole, _ = run("endings", "numbers", out="whole")
    real, asked = evaluating._answer, []

    def answer(record, name, *rest):
        asked.append(name)
        if asked == ["endings", "numbers"]:
            raise KeyboardInterrupt
        real(record, name, *rest)

    monkeypatch.setattr(evaluating, "_answer", answer)
    with pytest.raises(KeyboardInterrupt):
        run("endings", "numbers")
    record, _ = run("endings", "numbers")
    assert asked == ["endings", "numbers", "numbers"]
    assert record.tasks == whole.tasks


def test_a_refused_task_leaves_a_folder_that_can_be_used(run, refused):
    with refused("--feed-last 1"):
        run("letters")
    record, _ = run("letters", feed_last=1)
    assert record.tasks[0].silent == 0


def test_limit_and_shown_items(run, refused, task_folder):
    record, _ = run("endings", limit=2)
    assert record.tasks[0].items == [0, 1]
    more, _ = run("endings", limit=2, num_fewshot=1, out="shown")
    assert more.tasks[0].num_fewshot == 1
    assert more.tasks[0].context_tokens[0] > record.tasks[0].context_tokens[1]
    with refused("no chat template"):
        run("endings", apply_chat_template=True, out="chat")


def test_a_scheme_that_keeps_every_context_exact_is_not_believed(run):
    record, _ = run("endings", schemes=["kivi2:group_size=16"])  # the newest 128 tokens are exact
    assert record.tasks[0].rows[1].failures == [
        "reads no keys from packed storage",
        "reads no values from packed storage",
        "its log-likelihoods are those of exact to the last bit",
    ]


def test_a_metric_that_gives_no_figure_is_named(run, task_folder):
    said = yaml.safe_load((task_folder / "endings.yaml").read_text())
    said |= {"task": "in-vain", "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}]}
    (task_folder / "in-vain.yaml").write_text(yaml.safe_dump(said))
    record, _ = run("in-vain", limit=2)
    assert record.tasks[0].left_out == ["perplexity"]
    assert list(record.tasks[0].rows[0].metrics) == ["acc,none"]


def test_a_changed_figure_is_found(run, refused):
    _, folder = run("endings")
    path = folder / EVALUATION_FILE
    text = path.read_text()
    at = text.index('"loglikelihoods"')
    digit = next(i for i in range(at, len(text)) if text[i] in "123456")
    path.write_text(text[:digit] + "7" + text[digit + 1 :])
    with refused("not as it was written"):
        load_evaluation(folder)
    assert [len(one.damage) for one in verify(folder)] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task.update(lengths=[]), "it has 4 items and 0 lengths"),
        (lambda task: task.update(rows=[]), "it has 4 items and 0 rows"),
        (lambda task: task.update(items=[]), "it has 0 items"),
        (lambda task: task["gold"].__setitem__(1, 3), "the right choice of item 1 is 3, of 3"),
        (lambda task: task.update(requests=0), "0 of its 0 requests"),
        (lambda task: task["lengths"].__setitem__(0, [1, 2, -1]), "under 0 characters"),
        (lambda task: task["rows"][1]["metrics"].pop("acc,none"), "its metrics are acc_norm,none, and those of exact"),
        (lambda task: task["rows"][1]["metrics"]["acc,none"].pop(), "4 items, and not a figure for each"),
        (lambda task: task["rows"][1].update(loglikelihoods=[]), "it has 0 log-likelihoods in a task of multiple_choice"),
        (lambda task: task["rows"][1].update(loglikelihoods=[[]] * 4), "item 0 has 0 log-likelihoods of 3 choices"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_each_other_are_named(run, refused, change, message):
    """In a file whose hash says that it is as it was written."""
    _, folder = run("endings")
    path = folder / EVALUATION_FILE
    content = hashes.without(json.loads(path.read_text()))
    change(content["tasks"][0])
    path.write_text(json.dumps(hashes.hashed(content)))
    with refused(f"is not a run record: task endings: .*{message}"):
        load_evaluation(folder)
    assert [len(one.damage) for one in verify(folder)] == [1]


def test_a_calibration_of_another_model_is_refused(run, task_model, refused, monkeypatch):
    from kvdelta.harness.caches.contenders import SchemeContender

    monkeypatch.setattr(SchemeContender, "calibrated_for", [{"kind": "hub", "id": "a/b", "architecture": "Other"}])
    with refused("calibrated on another model"):
        run("endings")
