"""Texts of `datasets`, from a local folder: what the hub would give, without it."""

import json

import pytest

from kvdelta.harness.subject import data_sets
from kvdelta.harness.subject.data_sets import DataSet, parse_data_set
from kvdelta.harness.subject.errors import TextError
from kvdelta.harness.subject.text import load_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"body": "one two", "number": 1}, {"body": "three", "number": 2}, {"body": "four", "number": 3}]
    where = tmp_path / "books"
    where.mkdir()
    (where / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def test_a_column_becomes_a_text(folder):
    text = load_text(f"hf:{folder}:train:body")
    assert text.content == "one two\n\nthree\n\nfour"
    assert text.name == text.source["id"] == "hf:books:train:body"  # no path of this machine
    assert len(text.source["sha256"]) == 64


def test_a_slice(folder):
    assert load_text(f"hf:{folder}:train[:2]:body").content == "one two\n\nthree"


def test_a_long_one_is_cut_and_says_so(folder, monkeypatch):
    monkeypatch.setattr(data_sets, "MOST", 12)
    text = load_text(f"hf:{folder}:train:body")
    assert text.content == "one two\n\nthr"
    assert text.source["cut"] == "to its first 12 characters"


def test_one_that_just_fits_is_not_cut(folder, monkeypatch):
    monkeypatch.setattr(data_sets, "MOST", 1000)
    assert "cut" not in load_text(f"hf:{folder}:train:body").source


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":train:title", 'has no column "title"; it has body, number'),
        (":train:number", 'the column "number" holds int, and a text is needed'),
        (":test:body", r"Bad split: test. Available splits: \['train'\]"),
        (":train", "is not of the form hf:NAME:SPLIT:FIELD"),
    ],
)
def test_what_is_not_there_is_one_line(folder, spec, message, refused):
    with refused(message):
        load_text(f"hf:{folder}{spec}")


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("hf:org/set:test:text", DataSet("org/set", None, "test", "text")),
        ("hf:org/set,en@v1.0:train[:1%]:body", DataSet("org/set", "en", "train[:1%]", "body", "v1.0")),
        ("hf:set@abc:validation:content", DataSet("set", None, "validation", "content", "abc")),
    ],
)
def test_the_form(spec, parsed):
    assert parse_data_set(spec) == parsed
    assert str(parsed) == spec


def test_every_short_name_is_known_to_load_text(monkeypatch):
    """And asks for the data set that it stands for."""
    asked = {}

    def rows_of(name, split, config, revision, called, kept):
        asked[called] = (name, config, split)
        return iter([{"text": "a", "content": "a"}])

    monkeypatch.setattr(data_sets, "rows_of", rows_of)
    for name in ("wikitext-2", "wikitext-103", "pg19", "c4", "code"):
        assert load_text(name).content == "a"
    assert asked["wikitext-2"] == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    assert asked["c4"] == ("allenai/c4", "en", "validation")


def test_without_a_network_the_answer_comes_at_once(monkeypatch, refused):
    """No connection is tried but the first, which is refused here."""
    import socket
    import time

    from kvdelta.harness.subject import hub

    def refuse(*args, **kwargs):
        raise OSError("refused")

    hub.answers.cache_clear()
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "getproxies", dict)
    started = time.monotonic()
    with refused("huggingface.co cannot be reached, and this machine has no copy of it"):
        load_text("hf:org/set:test:text")
    assert time.monotonic() - started < 10
    hub.answers.cache_clear()


def test_a_gated_set_says_what_to_do(monkeypatch):
    import datasets

    from kvdelta.harness.subject import hub

    def gated(*args, **kwargs):
        raise ValueError("Dataset 'org/set' is a gated dataset on the Hub. You must be authenticated to access it.")

    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(TextError) as error:
        load_text("hf:org/set:test:text")
    assert "accept its terms at https://huggingface.co/datasets/org/set and give `hf auth login`" in str(error.value)


def test_a_name_of_blanks_is_none(refused):
    with refused("is not of the form"):
        load_text("hf: :b:c")
