"""A tiny model with a tokenizer, tasks, and lm_eval's own model to hold ours against."""

import pytest

from ...task_files import write_model, write_tasks


@pytest.fixture(scope="session")
def task_model(tmp_path_factory, model):
    from kvdelta.harness.subject.model import load_model

    return load_model(str(write_model(tmp_path_factory.mktemp("task-model"), model)))


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def own_data_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
