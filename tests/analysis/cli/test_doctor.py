"""kvdelta doctor, --version, and what a shell is told when it completes a word."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def installed(monkeypatch):
    """What importlib.metadata says, with changes: name → version, None for not installed."""
    real, changes = importlib.metadata.version, {}

    def version(name):
        if name not in changes:
            return real(name)
        if changes[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changes[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changes


def test_all_is_there(kvdelta):
    code, out, _ = kvdelta("doctor")
    assert code == 0
    said = {line[:15].strip(): line[16:].split() for line in out.splitlines()}
    assert said["torch"][0] == said["transformers"][0] == said["CPU"][0] == "ok"
    assert said["transformers"][1] == importlib.metadata.version("transformers")
    assert {"kvdelta", "Python", "memory", "packaged model", "report", "lm-eval", "parquet", "model hub"} <= set(said)


def test_an_optional_part_that_is_missing_names_its_extra(kvdelta, installed):
    installed["altair"] = None
    code, out, _ = kvdelta("doctor")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("report "))
    assert line.split()[1] == "missing"
    assert line.endswith("kvdelta report needs altair: pip install 'kvdelta[report]'")


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("transformers", "4.57.0", "4.57.0, and"),
        ("hqq", None, "not installed; >=0.2.8 is needed: pip install kvdelta"),
    ],
)
def test_what_kvdelta_does_not_run_with(kvdelta, installed, name, version, said):
    installed[name] = version
    code, out, err = kvdelta("doctor", "--format", "json")
    assert code == 2
    found = {row["part"]: row for row in json.loads(out)}
    assert found[name]["verdict"] == "wrong"
    assert said in found[name]["found"]
    assert err == f"kvdelta does not run with these: {name}\n"


def test_version(kvdelta):
    code, out, err = kvdelta("--version")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"kvdelta {importlib.metadata.version('kvdelta')} (torch {importlib.metadata.version('torch')}, "
    )


def completed(words):
    asked = {"_KVDELTA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kvdelta.analysis.cli.main"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_shell_completes_commands_and_flags():
    assert completed("kvdelta rel") == ["relate"]
    assert completed("kvdelta compare --match-") == ["--match-tail", "--match-sinks"]


@pytest.mark.real_model
def test_try(kvdelta):
    code, _, err = kvdelta("doctor", "--try")
    assert code == 0
    assert "the audit passed" in err.splitlines()[-1]


def test_a_shell_completes_schemes():
    assert {"kivi", "kivi2", "kivi4"} <= set(completed("kvdelta compare --scheme kiv"))
    assert completed("kvdelta compare --scheme k4") == ["k4v3"]
    assert "vllm/int4_per_token_head" in completed("kvdelta replay --scheme vllm/")
