"""Fixtures of the harness's tests."""

import random
import shutil
import sys
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness import cli


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KVDELTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def free_bytes(monkeypatch):
    """Pretend that so many bytes are free on every disk."""

    def pretend(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    return pretend


WORDS = [f"w{i}" for i in range(127)]
SCORING = ("compare", "audit", "outliers", "errors", "sensitivity", "allocate")


@pytest.fixture(scope="session")
def files(tmp_path_factory, model):
    """A model folder and a text file."""
    place = tmp_path_factory.mktemp("files")
    model.save_pretrained(place / "model")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(place / "model")
    (place / "text.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=900)))
    return place


@pytest.fixture
def kvdelta(files, tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    subject = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    sizes = ["--window-length", "128", "--score-length", "32"]

    def run(*words):
        defaults = [*subject, *sizes] if words[0] in SCORING else []
        monkeypatch.setattr(sys, "argv", ["kvdelta", words[0], *defaults, *words[1:]])  # a later flag wins
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run
