"""A run that is killed at any moment goes on, and ends as if it had not been: 40 kills, windows together, and two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("processes", [1, 2])
def test_forty_kills_lose_nothing(processes):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.harness.kills",
        "--kills",
        "40",
        "--processes",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    runs = re.match(rf"40 kills in (\d+) runs of {processes} processes, batch 3: nothing lost", done.stdout)
    assert runs
    assert int(runs[1]) > 0
    assert len(re.findall(r"\d+ windows \(", done.stdout)) > 1  # not all at the same moment
