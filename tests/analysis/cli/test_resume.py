"""A command that was killed after a window: the same command goes on, and ends with the arrays of one that was not."""

from pathlib import Path

import numpy as np
import pytest

from analysis.measuring import loop
from harness import runner

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
