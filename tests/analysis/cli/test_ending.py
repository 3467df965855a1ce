"""How a command ends: one line for a user's error, a traceback for a defect."""

import importlib.metadata

import pytest
import torch
from pydantic import BaseModel

from analysis.cli import catalogue
from schemes.errors import UserError


def raising(error):
    def listing(format):
        raise error

    return listing


class Typed(BaseModel):
    number: int


def invalid():
    try:
        Typed(number="x")  # type: ignore[arg-type]
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"),
        invalid(),
        RuntimeError("CUDA error: an illegal memory access"),
        OSError(5, "no"),
        KeyError(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_user_error_keeps_its_traceback(kvdelta, monkeypatch, error):
    monkeypatch.setattr(catalogue, "listing", raising(error))
    with pytest.raises(type(error)) as raised:
        kvdelta("schemes")
    assert raised.value is error


def test_a_user_error_is_one_line_whatever_is_in_it(kvdelta, monkeypatch):
    monkeypatch.setattr(catalogue, "listing", raising(UserError("no file 'a\nb\x1b[2J'")))
    assert kvdelta("schemes") == (2, "", "kvdelta: no file 'a\\nb\\x1b[2J'\n")


def test_a_device_without_memory_is_one_line(kvdelta, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
    monkeypatch.setattr(catalogue, "listing", raising(error))
    code, out, err = kvdelta("schemes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("kvdelta: the device has no memory left")
    assert "--window-length" in err


def test_an_interrupt_says_what_is_kept(kvdelta, monkeypatch):
    monkeypatch.setattr(catalogue, "listing", raising(KeyboardInterrupt()))
    code, _, err = kvdelta("schemes")
    assert (code, err) == (130, "kvdelta: interrupted; finished windows are kept: the same command goes on\n")


@pytest.mark.parametrize(("words", "said"), [([], "compare"), (["reproduce"], "trap")])
def test_without_words_it_shows_its_help(words, said, monkeypatch, capsys):
    from analysis.cli.main import main

    monkeypatch.setattr("sys.argv", ["kvdelta", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert any(line.split()[:1] == [said] for line in err.splitlines())


def test_help_is_a_result(kvdelta):
    code, out, err = kvdelta("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: kvdelta")


@pytest.mark.parametrize("missing", ["kvdelta", "hqq"])
def test_a_checkout_that_is_not_installed(kvdelta, monkeypatch, missing):
    installed = importlib.metadata.version

    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for command in ("compare", "outliers"):
        code, out, err = kvdelta(command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"kvdelta: {missing} is not installed")
        assert "pip install -e ." in err
