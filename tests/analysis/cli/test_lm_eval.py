"""`kvdelta lm-eval` as its user meets it."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from kvdelta.harness.records.evaluation import load_evaluation
from kvdelta.schemes import affine

from ...task_files import write_model, write_tasks

SCHEMES = ["--scheme", "int4:group_size=16", "--scheme", "asym1:group_size=16"]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def asked(tmp_path_factory, model):
    """A model folder and a folder of tasks."""
    place = tmp_path_factory.mktemp("asked")
    (place / "tasks").mkdir()
    write_tasks(place / "tasks", items=6)
    write_model(place / "model", model)
    return place


@pytest.fixture
def answer(asked, kvdelta, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    subject = ["--model", str(asked / "model"), "--device", "cpu", "--include-path", str(asked / "tasks")]
    return lambda *words: kvdelta("lm-eval", *subject, *words)


def test_tasks_are_answered_shown_again_and_verified(answer, kvdelta):
    words = ["--tasks", "endings,numbers", *SCHEMES, "--out", "run"]
    code, out, err = answer(*words)
    assert code == 0
    assert "endings (version 1): 6 items, none shown before, contexts of 40 to 45 tokens" in out
    assert "what follows a context reads it as stored" in out
    assert "record: run" in err
    assert kvdelta("show", "run") == (0, out, "")
    again = answer(*words)
    assert again[:2] == (0, out)
    assert "printed again" in again[2]
    assert "2 tasks, 12 items, complete" in kvdelta("verify", "run")[1]
    assert json.loads(Path("run/lm-eval.json").read_text())["flags"]["tasks"] == ["endings,numbers"]
    assert "| scheme |" in kvdelta("show", "run", "--format", "md")[1]
    rows = json.loads(kvdelta("show", "run", "--format", "json")[1])
    lines = list(csv.DictReader(io.StringIO(kvdelta("show", "run", "--format", "csv")[1])))
    assert [row["metric"] for row in rows] == [row["metric"] for row in lines]
    assert {(row["task"], row["metric"]) for row in rows} == {
        ("endings", "acc,none"), ("endings", "acc_norm,none"), ("endings", "NLL of the right choice"),
        ("numbers", "exact_match,number"),
    }  # fmt: skip
    flips = json.loads(kvdelta("show", "run", "--format", "json", "--flips")[1])
    lost = sum(row["lost"] for row in rows if row["lost"])
    assert sum(flip["kind"] == "lost" for flip in flips) == lost
    assert "items whose answer differs from exact's" in kvdelta("show", "run", "--flips")[1]


@pytest.mark.parametrize("calls", [0, 3], ids=["at once", "after a few"])
def test_a_scheme_that_raises_ends_its_own_rows(answer, kvdelta, monkeypatch, calls):
    whole, seen = affine.AffineQuantizer.quantize, []

    def quantize(self, *args, **kwargs):
        if self.bits == 1:
            seen.append(1)
            if len(seen) > calls:
                raise RuntimeError("the kernel broke")
        return whole(self, *args, **kwargs)

    alone = json.loads(answer("--tasks", "endings,numbers", *SCHEMES[:2], "--out", "alone", "--format", "json")[1])
    monkeypatch.setattr(affine.AffineQuantizer, "quantize", quantize)
    code, out, err = answer("--tasks", "endings,numbers", *SCHEMES, "--out", "run", "--format", "json")
    assert code == 4
    assert "asym1:group_size=16 failed, the others go on: RuntimeError: the kernel broke" in err
    assert err.splitlines()[-1] == "failed: asym1:group_size=16: RuntimeError: the kernel broke"
    assert json.loads(out) == alone
    assert load_evaluation("run").failed == {"asym1:group_size=16": "RuntimeError: the kernel broke"}
    assert kvdelta("show", "run")[0] == 4


def test_the_flags_of_a_record_are_taken_again(asked, answer, kvdelta):
    code, out, _ = answer("--tasks", "endings,numbers", *SCHEMES, "--limit", "3", "--flips", "--out", "run")
    assert code == 0
    again = kvdelta("lm-eval", "--config", "run", "--out", "run")
    assert again[:2] == (0, out)
    assert "printed again" in again[2]


def test_the_log_has_the_figures(answer, kvdelta):
    code, _, _ = answer("--tasks", "endings,numbers", *SCHEMES, "--out", "run", "--log-json", "log")
    assert code == 0
    events = [json.loads(line) for line in Path("log").read_text().splitlines()]
    scored = [(one["task"], one["scheme"], one["items"]) for one in events if one["event"] == "scored"]
    labels = ["exact", SCHEMES[1], SCHEMES[3]]
    assert scored == [(task, label, 6) for task in ("endings", "numbers") for label in labels]
    rows = json.loads(kvdelta("show", "run", "--format", "json")[1])
    logged = [one for one in events if one["event"] == "row"]
    assert [row.items() <= one.items() for row, one in zip(rows, logged, strict=True)] == [True] * len(rows)


def test_choices_by_letter(answer):
    code, out, err = answer("--tasks", "letters", *SCHEMES, "--out", "run")
    assert (code, out) == (2, "")
    assert "each continuation is one token" in err
    code, out, _ = answer("--tasks", "letters", *SCHEMES, "--feed-last", "2", "--out", "run")
    assert code == 0
    assert "a context's last 2 tokens, and what follows it, read it as stored" in out


def test_what_reads_nothing_has_no_score(answer):
    code, out, err = answer("--tasks", "endings", "--scheme", "kivi2:group_size=16")
    assert code == 3
    assert "audit failed" in out
    assert "show more items with --num-fewshot" in out
    assert "audit failed: endings, kivi2:group_size=16: reads no keys from packed storage" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one with --tasks"),
        (["--tasks", "endings", "--limit", "0"], "limit is 0"),
        (["--tasks", "endings", "--feed-last", "-1"], "feed_last is -1"),
        (["--tasks", "endings", "--num-fewshot", "-1"], "num_fewshot is -1"),
        (["--tasks", "endings", "--scheme", "kiwi2"], "kiwi2"),
        (["--tasks", "rolling"], "nothing is read from storage"),
        (["--tasks", "endings", "--include-path", "gone"], "no such folder"),
        (["--tasks", "endings", "--scheme", "hf-hqq4"], "no scheme of ours"),
    ],
)
def test_bad_input_is_one_line(answer, words, message):
    code, out, err = answer(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_the_library_its_extra_is_named(answer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = answer("--tasks", "endings")
    assert (code, out) == (2, "")
    assert "pip install 'kvdelta[lm-eval]'" in err
    assert err.count("\n") == 1


@pytest.mark.real_model
def test_the_packaged_model_on_the_examples(tmp_path, monkeypatch, capsys):
    """It tells how a text goes on, and 1 bit takes that away."""
    from kvdelta.analysis.cli.main import main
    from kvdelta.harness.records.evaluation import load_evaluation

    monkeypatch.chdir(ROOT)
    words = ["--tasks", "endings", "--include-path", "examples/lm-eval", "--limit", "4", "--scheme", "asym1"]
    monkeypatch.setattr(sys, "argv", ["kvdelta", "lm-eval", *words, "--device", "cpu", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    (task,) = load_evaluation(tmp_path / "run").tasks
    right = [[item[gold] for item, gold in zip(row.loglikelihoods, task.gold, strict=True)] for row in task.rows]
    assert sum(task.rows[0].metrics["acc_norm,none"]) >= 3
    assert all(exact > coarse for exact, coarse in zip(*right, strict=True))
