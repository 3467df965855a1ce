"""`kvdelta tasks` as its user meets it."""

import json
import sys

import pytest

from kvdelta.analysis.cli import main as cli
from kvdelta.harness.records.tasks import load_tasks

from ...conftest import WORDS

HERE = ["--device", "cpu", "--out", "run"]


@pytest.fixture
def mine(tmp_path):
    """A task file in the words that the tiny model's tokenizer knows."""
    rows = [
        {"context": " ".join(WORDS[i : i + 90]), "question": WORDS[i], "answer": f"{WORDS[i + 1]} {WORDS[i + 2]}"}
        for i in range(4)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_task_file_is_scored_shown_again_and_verified(kvdelta, files, mine):
    words = [
        "--model",
        str(files / "model"),
        "--task-file",
        "mine.jsonl",
        "--scheme",
        "int8",
        "--scheme",
        "asym2",
        *HERE,
    ]
    code, out, err = kvdelta("tasks", *words)
    assert code == 0, err
    assert "mine, about 90 tokens: exact matches" in out
    assert "read: share of the pairs" in out
    assert "sample 4/4  mine, 90 tokens  took" in err
    assert err.endswith("record: run\n")
    assert kvdelta("show", "run") == (0, out, "")
    assert kvdelta("tasks", *words)[1] == out
    code, again, _ = kvdelta("show", "run", "--format", "json")
    rows = json.loads(again)
    assert [row["scheme"] for row in rows] == ["exact", "int8", "asym2"]
    assert rows[0]["delta_nll"] == 0 != rows[2]["delta_nll"]
    assert kvdelta("show", "run", "--format", "csv")[1].count("\n") == 4
    assert "| asym2 |" in kvdelta("show", "run", "--format", "md")[1]
    code, out, _ = kvdelta("verify", "run")
    assert (code, out) == (0, "run/tasks.json: whole (3 schemes, 4 of 4 samples, complete)\n")


def test_the_log_has_each_samples_figures_and_the_rows_of_the_table(kvdelta, files, mine, tmp_path):
    words = ["--model", str(files / "model"), "--task-file", "mine.jsonl", "--scheme", "asym2"]
    assert kvdelta("tasks", *words, *HERE, "--log-json", "log.jsonl")[0] == 0
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scored = [one for one in events if one["event"] == "scored"]
    record = load_tasks(tmp_path / "run")
    assert [(one["task"], one["length"], one["sample"], one["scheme"], one["nll"], one["match"]) for one in scored] == [
        ("mine", 0, sample.number, scheme, sample.nll[i] / sample.count, sample.match[i])
        for sample in record.samples
        for i, scheme in enumerate(("exact", "asym2"))
    ]
    rows = [one for one in events if one["event"] == "row"]
    shown = json.loads(kvdelta("show", "run", "--format", "json")[1])
    assert [{name: one[name] for name in shown[0]} for one in rows] == shown
    assert rows[0]["folder"] == "run"
    assert events.index(rows[0]) > events.index(scored[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "niah"], "task 'niah': choose niah-single, niah-multikey"),
        (["--length", "64"], "length 64: contexts have 128 tokens or more"),
        (["--difficulty", "hard"], "difficulty 'hard'"),
        (["--protocol", "single-pass"], "single-pass answers without reading the cache"),
        (["--task-file", "gone.jsonl"], "there is no task file gone.jsonl; give "),
        (["--task-file", "."], "the task file . is a folder; give "),
        (["--task-file", ""], "the name of the task file is empty; give "),
        (["--scheme", "int9"], "int9"),
    ],
)
def test_bad_input_ends_before_anything_is_loaded(kvdelta, words, message):
    code, out, err = kvdelta("tasks", "--model", "gone", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_line_of_a_task_file_is_named(kvdelta, files, mine):
    mine.write_text(mine.read_text() + '\n{"context": "w1", "question": "w2"}\n')
    code, _, err = kvdelta("tasks", "--model", "gone", "--task-file", "mine.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert 'mine.jsonl, line 5: the field "answer" is missing; give {"context"' in err
    mine.write_text('{"context": "w1", "question": "w2", "answer": "blue"}\n')
    code, _, err = kvdelta("tasks", "--model", str(files / "model"), "--task-file", "mine.jsonl", *HERE)
    assert (code, err.count("\n")) == (2, 1)
    assert "mine.jsonl, line 1: the answer 'blue' is not in the vocabulary of this model's tokenizer" in err


def test_a_task_that_the_vocabulary_cannot_say(kvdelta, files):
    words = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--task", "kv", "--length", "128"]
    code, _, err = kvdelta("tasks", *words, "--scheme", "int4", *HERE)
    assert code == 2
    assert "task kv: the answer '" in err


@pytest.mark.real_model
def test_the_packaged_model_finds_a_needle_and_a_zeroed_cache_loses_it(tmp_path, monkeypatch):
    """And what it finds is what it writes."""
    import torch

    words = ["--task", "niah-single", "--length", "192", "--depths", "2", "--samples", "2", "--difficulty", "2"]
    given = ["--scheme", "int8", "--device", "cpu", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["kvdelta", "tasks", *words, *given])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    record = load_tasks(tmp_path / "run")
    assert [sample.match for sample in record.samples] == [[True, True]] * 2

    from kvdelta.harness.caches.contenders import SchemeContender
    from kvdelta.harness.protocols import prefill
    from kvdelta.harness.subject.model import load_model
    from kvdelta.harness.subject.text import load_text
    from kvdelta.harness.tasks.answering import answer_logits, answered
    from kvdelta.harness.tasks.haystack import Haystack
    from kvdelta.harness.tasks.levels import LADDERS
    from kvdelta.harness.tasks.samples import Maker

    loaded = load_model()
    maker = Maker(loaded.tokenizer, None, Haystack.of(load_text(), loaded.tokenizer), 0)
    sample = maker.sample("niah-single", LADDERS["niah-single"][1], 192, 0, 0.0)
    assert sample.sha256 == record.samples[0].ids
    ids = torch.tensor([[*sample.context, *sample.question]])
    written = loaded.model.generate(ids, max_new_tokens=len(sample.answer), do_sample=False, pad_token_id=0)
    assert written[0, ids.shape[1] :].tolist() == list(sample.answer)
    cache = SchemeContender.of("int8").empty(loaded.model).fill(prefill(loaded.model, sample.window.prefix))
    cache.zero_codes()
    lost, _ = answered(answer_logits(loaded.model, cache, sample, None), sample, None)
    assert not lost.match
    assert lost.nll > record.samples[0].nll[1] + 5
    whole = [*sample.context, *sample.question, *sample.answer]
    assert loaded.tokenizer(loaded.tokenizer.decode(whole), add_special_tokens=False)["input_ids"] == whole
