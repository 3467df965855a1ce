"""A command that was killed after a window: the same command goes on, and ends with the arrays of one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvdelta.analysis.measuring import loop
from kvdelta.harness.records import journal
from kvdelta.harness.records.run_folder import RUN_FILE, journal_of, load_run
from kvdelta.harness.records.writer import LOCK

ROOT = Path(__file__).parents[3]
SCHEMES = ["--scheme", "asym2:key_axis=channel,group_size=16", "--scheme", "asym4:key_axis=channel,group_size=16"]
COMMANDS = {
    "outliers": ["outliers", "--pre-rope", "--windows", "3"],
    "errors": ["errors", *SCHEMES, "--windows", "3"],
    "sensitivity": ["sensitivity", *SCHEMES[:2], "--windows", "3"],
    "allocate": ["allocate", *SCHEMES, "--windows", "3", "--budget", "5"],
}
KEPT = {
    ("outliers", "a measured window"): "killed, outliers, 1 of 3 windows",
    ("errors", "a measured window"): "killed, errors, 1 of 3 windows",
    ("sensitivity", "a measured window"): "killed, sensitivity, 1 of 3 windows",
    ("allocate", "a measured window"): "killed/fit, errors, 1 of 2 windows",
    ("allocate", "a scored window"): "killed/fit, errors, 2 of 2 windows; killed/verify, 1 of 3 windows",
}
AT = {
    "a measured window": (loop, "save_window"),
    "a scored window": (journal, "append"),
}


def arrays_in(folder):
    return {
        str(path.relative_to(folder)): dict(np.load(path))
        for path in sorted(Path(folder).rglob("*.npz"))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at"), [*((name, "a measured window") for name in COMMANDS), ("allocate", "a scored window")]
)
def test_the_same_command_goes_on(kvdelta, unrendered, monkeypatch, name, at):
    module, saving = AT[at]
    save = getattr(module, saving)

    def saves_and_dies(*args):
        save(*args)
        raise KeyboardInterrupt

    words = COMMANDS[name]
    with monkeypatch.context() as patch:
        patch.setattr(module, saving, saves_and_dies)
        code, _, err = kvdelta(*words, "--out", "killed")
        said = re.fullmatch(r"kvdelta: interrupted; kept: (.*); the same command goes on", err.splitlines()[-1])
        assert (code, said and said[1]) == (130, KEPT[name, at])
    before = {path: path.stat().st_mtime_ns for path in Path("killed").rglob("*.npz")}
    assert before
    code, out, _ = kvdelta(*words, "--out", "killed")
    assert code == 0
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())  # not measured again
    whole_code, whole_out, _ = kvdelta(*words, "--out", "whole")
    assert (code, out) == (whole_code, whole_out)
    killed, whole = arrays_in("killed"), arrays_in("whole")
    assert len(killed) > len(before)
    assert killed.keys() == whole.keys()
    for path, arrays in whole.items():
        assert arrays.keys() == killed[path].keys()
        for array in arrays:
            np.testing.assert_array_equal(killed[path][array], arrays[array], err_msg=f"{path} {array}")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["compare"], ["run, 1 of 4 windows"]),
        (
            ["compare", *["--step", "8", "--batch", "1", "--protocol", "two-pass", "--protocol", "stepwise"]],
            ["run/two-pass, 1 of 4 windows", "run/stepwise-8, 0 of 4 windows"],
        ),
        (["sweep"], [r"run/\S+/two-pass, 1 of 4 windows"]),
    ],
)
def test_an_interrupt_says_what_is_kept(kvdelta, monkeypatch, words, kept):
    def appends_and_is_interrupted(*args):
        append(*args)
        raise KeyboardInterrupt

    append = journal.append
    monkeypatch.setattr(journal, "append", appends_and_is_interrupted)
    code, _, err = kvdelta(*words, *SCHEMES, "--windows", "4", "--out", "run")
    said = f"kvdelta: interrupted; kept: {'; '.join(kept)}; the same command goes on"
    assert code == 130
    assert re.fullmatch(said, err.splitlines()[-1]), err


def test_an_interrupt_by_the_terminal(kvdelta):
    """The signal, in the middle of a window."""
    kvdelta("compare", *SCHEMES, "--windows", "4", "--out", "x", "--help")
    words = ["run" if word == "x" else word for word in sys.argv[1:-1]]
    interrupts = DIES.replace("DIES_AT", "2").replace("SIGKILL", "SIGINT").replace("killed", "run")
    done = subprocess.run(
        [sys.executable, "-c", interrupts, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (130, "kvdelta: interrupted; kept: run, 1 of 4 windows; the same command goes on")


DIES = """
import os, pathlib, runpy, signal
from kvdelta.harness.records import journal

append = journal.append

def appends(path, content):
    if len(list(pathlib.Path("killed/tokens").glob("*.npz"))) == DIES_AT:
        path.open("ab").write(b"01234567 " + content.encode()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, content)

journal.append = appends
runpy.run_module("kvdelta.analysis.cli.main", run_name="__main__")
"""


@pytest.mark.parametrize("at", [1, 2])
def test_a_comparison_that_is_killed_goes_on(kvdelta, at):
    """By a signal that no code answers, when a window is measured and half of its entry in the journal is written."""
    assert kvdelta("compare", *SCHEMES, "--windows", "4", "--out", "whole")[0] == 0
    words = ["killed" if word == "whole" else word for word in sys.argv[1:]]
    one_thread = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    dies = DIES.replace("DIES_AT", str(at))
    done = subprocess.run([sys.executable, "-c", dies, *words], env=one_thread, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(journal.read(journal_of(Path("killed")))) == at - 1
    left = load_run("killed")
    assert (left.status, len(left.windows)) == ("running", at - 1)
    finished = [Path("killed/tokens") / f"{window.index:06}.npz" for window in left.windows]
    before = [path.stat().st_mtime_ns for path in finished]
    code, _, err = kvdelta("compare", *SCHEMES, "--windows", "4", "--out", "killed")
    assert code == 0
    assert "window 4/4" in err
    assert [path.stat().st_mtime_ns for path in finished] == before  # not measured again
    assert sorted(path.name for path in Path("killed").iterdir()) == [LOCK, RUN_FILE, "timings.json", "tokens"]
    prefills = json.loads(Path("killed/timings.json").read_text())["seconds"]["prefill"]
    assert len(prefills) == 4  # of the process that was killed too
    killed, whole = (load_run(folder).model_dump(exclude={"command"}) for folder in ("killed", "whole"))
    assert killed == whole
    assert arrays_in("killed").keys() == arrays_in("whole").keys()
    for path, arrays in arrays_in("whole").items():
        for array in arrays:
            np.testing.assert_array_equal(arrays_in("killed")[path][array], arrays[array], err_msg=f"{path} {array}")
