"""What reads records starts without a model: the real commands, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvdelta.harness.records.run_folder import load_run, save_run

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "transformers", "scipy.stats", "datasets", "hqq"}  # the first two take seconds
COMMANDS = {
    "show": ["show", "."],
    "show json": ["show", ".", "--format", "json"],
    "show csv against a label": ["show", ".", "--format", "csv", "--baseline", "symmetric:bits=4", "--sort", "kl"],
    "show md against a map": ["show", ".", "--format", "md", "--baseline", "@maps/gone.json#12345678"],
    "plot": ["plot", "."],
    "plot in a style": ["plot", ".", "--style", "grayscale"],
    "relate": ["relate", "."],
    "carry": ["carry", ".", "other", "--out", "figures"],
}


AS_TYPED = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded", *sys.modules, file=sys.stderr))
runpy.run_module("kvdelta.analysis.cli.main", run_name="__main__")
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_record_is_read_without_model_code(name, record_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    other = load_run(record_folder)
    other.text_name = other.settings.text_sha256 = "other"
    save_run(other, record_folder / "other")
    done = subprocess.run(
        [sys.executable, "-c", AS_TYPED, *COMMANDS[name]], cwd=record_folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, *loaded = done.stderr.splitlines()[-1].split()
    assert "kvdelta.analysis.reading.summary" in loaded
    assert not HEAVY.intersection(loaded)
    if COMMANDS[name][0] != "show":
        pictures = list((record_folder / "figures").glob("*.png"))
        assert any(path.name.startswith("relate") for path in pictures) == (name == "relate")
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
