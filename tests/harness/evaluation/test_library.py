"""Which tasks can be had, and one line for those that cannot."""

import importlib
import sys

import pytest
import yaml

from kvdelta.harness.evaluation.library import load_tasks
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
        ("wrong", {"output_type": "guess"}, "wrong cannot be loaded: .*guess"),
        ("misspelt", {"metric_list": [{"metric": "no_such_metric"}]}, "no_such_metric"),
    ],
)
def test_tasks_that_cannot_be_answered(folder, refused, name, said, message):
    if said:
        add(folder, name, **said)
    with refused(message):
        load_tasks([name], str(folder))


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
