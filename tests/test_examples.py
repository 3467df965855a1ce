"""The examples run, each in a process and a folder of its own, and print what they are about."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SAID = {
    "compare": r"two-pass, record in runs/compare-\w+\n(.*\n)+stepwise, record in runs/compare-\w+\n(.*\n)+kivi4 ",
    "generate": r"exact: 96 tokens in [\d,]+ bytes: (.*\n)+int8: 96 tokens in [\d,]+ bytes: (.*\n)+Once upon a time",
    "own_cache": r"not passed: \['hybrid, convolution'\]\nthe audit passed\nexact: KL 0\.00000 (.*\n)+own_cache:rounded: KL 0\.00[1-9]",
}


def test_each_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAID, "read_records"}


def run(name, folder, *words):
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)])}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.real_model
@pytest.mark.parametrize("name", SAID)
def test_it_runs(name, tmp_path):
    assert re.search(SAID[name], run(name, tmp_path))


def test_records_are_read_without_a_model(tmp_path):
    out = run("read_records", tmp_path, str(ROOT / "results/demo"))
    assert re.search(r"\nkivi2 +3\.54 bits  KL 0\.16\s*\n", out)
