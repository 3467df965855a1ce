"""Which tasks can be had, and one line for those that cannot."""

import importlib
import json
import sys

import pytest
import yaml

from kvdelta.harness.evaluation.library import load_tasks
from kvdelta.harness.evaluation.right_choices import check_gold
from kvdelta.harness.evaluation.task_files import check_files
from kvdelta.harness.subject import hub

from ...task_files import CHOICES, write_tasks


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path)


def add(folder, name, **said):
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test"} | data | CHOICES | said))


def test_tasks_by_name_and_groups_taken_apart(folder):
    assert list(load_tasks(["numbers", "endings"], str(folder))) == ["numbers", "endings"]
    add(folder, "tagged", tag="of-mine")
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["endings", "numbers"]}))
    assert sorted(load_tasks(["both", "of-mine"], str(folder))) == ["endings", "numbers", "tagged"]


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("rolling", {}, "rolling asks for the log-likelihood of a whole text .* nothing is read from storage"),
        (
            "gone",
            {"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}},
            "gone cannot be loaded: .*gone.jsonl.*data_files are from",
        ),
        ("coded", {"unsafe_code": True}, "runs code that the model wrote"),
        (
            "astray",
            {"test_split": "exam"},
            "its test_split is 'exam', and its data have no split of this name; data_files has test",
        ),
        (
            "bare",
            {"dataset_kwargs": {"data_files": {"test": "bare.jsonl"}}},
            "its data have no items: is one of bare.jsonl empty",
        ),
        ("far", {"doc_to_target": "seven"}, "right choice of its first item is out of range .*doc_to_target .'seven'"),
        ("wrong", {"output_type": "guess"}, "wrong cannot be loaded: .*guess"),
        ("misspelt", {"metric_list": [{"metric": "no_such_metric"}]}, "no_such_metric"),
    ],
)
def test_tasks_that_cannot_be_answered(folder, refused, monkeypatch, name, said, message):
    monkeypatch.chdir(folder)
    (folder / "bare.jsonl").write_text("")
    rows = [json.loads(line) | {"seven": 7} for line in (folder / "data.jsonl").read_text().splitlines()]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if said:
        add(folder, name, **said)
    with refused(message):
        load_tasks([name], str(folder))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"doc_to_target": "lable"},
            "none of its 4 items has a right choice: doc_to_target .'lable'.*fields are text, choices, label",
        ),
        ({"doc_to_target": "later"}, "the right choice of item 2 is 7, and it has 3 choices, counted from 0"),
    ],
)
def test_tasks_that_do_not_say_what_is_right(folder, refused, said, message):
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"later": 7 * (i == 2)}) + "\n" for i, row in enumerate(rows)]
    (folder / "data.jsonl").write_text("".join(lines))
    add(folder, "unsaid", **said)
    add(folder, "said")
    tasks = load_tasks(["unsaid", "said"], str(folder))
    check_gold("said", tasks["said"], None)
    with refused(message):
        check_gold("unsaid", tasks["unsaid"], None)
    if "later" in said.values():
        check_gold("unsaid", tasks["unsaid"], 2)


def test_files_that_are_no_yaml_are_named(folder, refused):
    (folder / "below").mkdir()
    (folder / "below" / "own.yaml").write_text("task: own\nmetric_list: [acc,\nfew: }\n")
    with refused(r"own\.yaml, line 3 is no YAML: .*; mend it"):
        load_tasks(["endings"], str(folder))
    (folder / "below" / "own.yaml").write_bytes(b"task: \xff\n")
    with refused(r"own\.yaml is no YAML: "):
        load_tasks(["endings"], str(folder))


def test_tags_of_the_library_are_read_over_and_run_nothing(folder):
    (folder / "own.py").write_text("raise SystemExit('run')\n")
    (folder / "own.yaml").write_text("task: own\nprocess_docs: !function own.docs\nother: !!python/name:os.system x\n")
    assert check_files(str(folder)) == []
    assert list(load_tasks(["endings"], str(folder))) == ["endings"]


def test_a_file_without_a_task_is_named_where_one_is_not_found(folder, refused):
    (folder / "empty.yaml").write_text("")
    (folder / "template.yaml").write_text("output_type: multiple_choice\n")
    with refused("knows no task 'endngs'.*no `task:` and no `group:` is in empty.yaml, template.yaml"):
        load_tasks(["endngs"], str(folder))
    assert list(load_tasks(["endings"], str(folder))) == ["endings"]


def test_an_unknown_task_names_those_that_are_near(folder, refused):
    with refused(r"knows no task 'endngs' among \d+: did you mean endings"):
        load_tasks(["endngs"], str(folder))
    with refused("--include-path nowhere: there is no such folder"):
        load_tasks(["endings"], "nowhere")


def test_a_hub_that_cannot_be_reached_is_said_at_once(folder, refused, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: False)
    add(folder, "afar", dataset_path="nobody/nothing-of-this-name", dataset_kwargs={})
    with refused("its data are nobody/nothing-of-this-name; .* cannot be reached, and this machine has no copy of it"):
        load_tasks(["afar"], str(folder))


def test_without_the_library_its_extra_is_named(refused, monkeypatch):
    monkeypatch.delitem(sys.modules, "kvdelta.harness.evaluation.language_model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with refused(r"lm-evaluation-harness cannot be imported .*: pip install 'kvdelta\[lm-eval\]'"):
        load_tasks(["endings"], None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ImportError, match=r"pip install 'kvdelta\[lm-eval\]'"):
        importlib.import_module("kvdelta.harness.evaluation.language_model")
