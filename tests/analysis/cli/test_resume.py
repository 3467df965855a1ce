"""A command that was killed after a window: the same command goes on, and ends with the arrays of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.measuring import loop
from harness import runner
from harness.records.run import load_run
from harness.records.writing import UNFINISHED

ROOT = Path(__file__).parents[3]
SCHEMES = ["--scheme", "asym2:key_axis=channel,group_size=16", "--scheme", "asym4:key_axis=channel,group_size=16"]
COMMANDS = {
    "outliers": ["outliers", "--pre-rope", "--windows", "3"],
    "errors": ["errors", *SCHEMES, "--windows", "3"],
    "sensitivity": ["sensitivity", *SCHEMES[:2], "--windows", "3"],
    "allocate": ["allocate", *SCHEMES, "--windows", "3", "--budget", "5"],
}
AT = {
    "a measured window": (loop, "save_arrays"),
    "a scored window": (runner, "save_run"),
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
        assert kvdelta(*words, "--out", "killed")[0] == 130
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


DIES = """
import os, pathlib, runpy, signal

replace = os.replace

def replaces(part, path):
    if pathlib.Path(path).name == "run.json" and len(list(pathlib.Path("killed/tokens").glob("*.npz"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, path)

os.replace = replaces
runpy.run_module("analysis.cli.main", run_name="__main__")
"""


def test_a_comparison_that_is_killed_goes_on(kvdelta):
    """By a signal that no code answers, when the second window is measured and its record is being written."""
    assert kvdelta("compare", *SCHEMES, "--windows", "4", "--out", "whole")[0] == 0
    words = ["killed" if word == "whole" else word for word in sys.argv[1:]]
    one_thread = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DIES, *words], env=one_thread, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in Path("killed").glob(f"*{UNFINISHED}")]
    left = load_run("killed")
    assert (left.status, len(left.windows)) == ("running", 1)
    finished = Path("killed/tokens") / f"{left.windows[0].index:06}.npz"
    before = finished.stat().st_mtime_ns
    code, _, err = kvdelta("compare", *SCHEMES, "--windows", "4", "--out", "killed")
    assert code == 0
    assert "window 4/4" in err
    assert finished.stat().st_mtime_ns == before  # not measured again
    killed, whole = (load_run(folder).model_dump(exclude={"command"}) for folder in ("killed", "whole"))
    assert killed == whole
    assert arrays_in("killed").keys() == arrays_in("whole").keys()
    for path, arrays in arrays_in("whole").items():
        for array in arrays:
            np.testing.assert_array_equal(arrays_in("killed")[path][array], arrays[array], err_msg=f"{path} {array}")
