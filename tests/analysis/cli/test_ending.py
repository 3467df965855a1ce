"""How a command ends: one line for a user's error, a traceback for a defect."""

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from kvdelta.analysis.cli import catalogue
from kvdelta.analysis.cli.ending import FAULT
from kvdelta.harness import comparison
from kvdelta.schemes.errors import UserError

ROOT = Path(__file__).parents[3]


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
def test_what_is_no_user_error_keeps_its_traceback_and_says_what_to_do_with_it(kvdelta, monkeypatch, error):
    monkeypatch.setattr(catalogue, "listing", raising(error))
    code, out, err = kvdelta("schemes")
    assert (code, out) == (FAULT, "")
    assert err.startswith("Traceback (most recent call last):")
    assert type(error).__name__ in err
    assert "this is a fault of kvdelta, not of yours: please report it" in err.splitlines()[-1]


def test_a_user_error_is_one_line_whatever_is_in_it(kvdelta, monkeypatch):
    monkeypatch.setattr(catalogue, "listing", raising(UserError("no file 'a\nb\x1b[2J'")))
    assert kvdelta("schemes") == (2, "", "kvdelta: no file 'a\\nb\\x1b[2J'\n")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_device_without_memory_is_one_line(kvdelta, monkeypatch, error):
    monkeypatch.setattr(catalogue, "listing", raising(error))
    code, out, err = kvdelta("schemes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("kvdelta: the device has no memory left")
    assert "--window-length" in err


NOTHING_KEPT = "kvdelta: interrupted; no record was begun or added to: the same command begins as this one did"


def test_an_exit_of_other_peoples_code_is_an_error(kvdelta, monkeypatch):
    def listing(format):
        sys.exit(0)

    monkeypatch.setattr(catalogue, "listing", listing)
    code, out, err = kvdelta("schemes")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"kvdelta: \S+test_ending.py:\d+ called exit\(0\), which ended the command; .*\n", err)


def test_an_interrupt_of_what_keeps_nothing(kvdelta, monkeypatch):
    monkeypatch.setattr(catalogue, "listing", raising(KeyboardInterrupt()))
    code, _, err = kvdelta("schemes")
    assert (code, err) == (130, f"{NOTHING_KEPT}\n")


def test_an_interrupt_before_a_folder_is_looked_at(kvdelta, monkeypatch):
    """Another command's record, of this process too, is not of this one."""
    words = ["compare", "--scheme", "int8:group_size=16", "--windows", "2"]
    assert kvdelta(*words, "--out", "done")[0] == 0

    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "settings_of", interrupted)
    code, _, err = kvdelta(*words, "--out", "new")
    assert (code, err.splitlines()[-1]) == (130, NOTHING_KEPT)


@pytest.mark.parametrize(("words", "said"), [([], "compare"), (["reproduce"], "trap")])
def test_without_words_it_shows_its_help(words, said, monkeypatch, capsys):
    from kvdelta.analysis.cli.main import main

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


def test_a_checkout_without_what_it_is_typed_with(tmp_path):
    """On the path of an environment that has no typer, which the command line itself is made of."""
    code = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('kvdelta.analysis.cli.main', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "show", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("kvdelta: typer is not installed")
    assert done.stderr.endswith(" -m pip install -e .\n")


def test_a_reader_that_has_enough(tmp_path):
    """As head has: no traceback, also where the output is only written at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "kvdelta.analysis.cli.main", "--help"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_encoding_without_the_letters(tmp_path):
    words = [sys.executable, "-m", "kvdelta.analysis.cli.main", "show", str(ROOT / "results" / "demo")]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"\\u0394NLL" in done.stdout


UNREADABLE = {
    "style": (["plot", "run", "--style", "broken.mplstyle"], "the style 'broken.mplstyle' cannot be read"),
    "no text in a record": (["show", "bytes"], "bytes/run.json cannot be read as a run record"),
    "no end in a record": (["show", "nested"], "nested/run.json cannot be read as a run record"),
    "figures missing": (
        ["show", "shorter"],
        "shorter/run.json is not a run record: a window has not a figure for each",
    ),
    "nothing scored": (["show", "empty"], "empty/run.json is not a run record: windows.0.count"),
    "no window": (["show", "started"], "the run has no finished window yet; give its command again to go on: kvdelta"),
    "a long name": (["plot", "x" * 300], "holds no record"),
    "long text": (["compare", "--text", "the text itself " * 30], "cannot be read: File name too long"),
    "text without permission": (["compare", "--text", "denied.txt"], "denied.txt. cannot be read: Permission denied"),
    "gguf without permission": (
        ["compare", "--model", "denied.gguf"],
        "denied.gguf. cannot be read: Permission denied",
    ),
    "map that is a folder": (["compare", "--scheme", "@folder"], "cannot be read: Is a directory"),
    "seed": (["compare", "--seed", "-1"], "seed=-1: generators take 0 or more"),
    "large seed": (["compare", "--seed", str(2**64)], "take 0 or more, below"),
    "range": (["outliers", "--layers", "1-0"], "a range goes up"),
    "large range": (["outliers", "--heads", "0-99999999999"], "no number is over 9999"),
    "budget": (
        ["allocate", "--budget", "nan", "--windows", "1", "--fit-windows", "1"],
        "a budget of nan bits is under",
    ),
    "calibration without a name": (["calibrate", "--scheme", "kvquant:bits=4", "--out", "."], "names none"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_line(kvdelta, tmp_path, files, run, monkeypatch, case):
    words, message = UNREADABLE[case]
    (tmp_path / "broken.mplstyle").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    content = json.loads(run.model_dump_json())
    shorter = [{**window, "nll": window["nll"][:1]} for window in content["windows"]]
    records = {
        "run": run.model_dump_json().encode(),
        "bytes": b"\xff",
        "nested": b"[" * 100_000,
        "shorter": json.dumps({**content, "windows": shorter}).encode(),
        "empty": json.dumps({**content, "windows": [{**content["windows"][0], "count": 0}]}).encode(),
        "started": json.dumps({**content, "status": "running", "contenders": [], "windows": []}).encode(),
    }
    for name, record in records.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(record)
    for name in ("denied.txt", "denied.gguf"):
        (tmp_path / name).write_text("x")
    opened = io.open

    def deny(file, *args, **kwargs):  # the tests may run as root, to whom nothing is denied
        if str(file).startswith("denied"):
            raise PermissionError(13, "Permission denied", file)
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", deny)
    subject = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    if words[0] == "calibrate":
        words = [*words, *subject, "--windows", "1", "--window-length", "128", "--score-length", "32"]
    code, out, err = kvdelta(*words)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("kvdelta: ")
    assert re.search(message, last), last
