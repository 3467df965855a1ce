"""A scheme or a cache that raises, calls exit() or hangs ends its own row in every command: the others go on, exit code 4."""

import csv
import io
import json

import pytest

from kvdelta.harness.records.bench import load_bench
from kvdelta.harness.records.measurement import load_measurement
from kvdelta.harness.records.replay import load_steps
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.tasks import load_tasks
from kvdelta.schemes import affine

GOOD, BAD = "asym4:group_size=16", "asym2:group_size=16"
BOTH = ["--scheme", GOOD, "--scheme", BAD]
CACHES = """
import sys, time
from transformers import DynamicCache
class Leaves(DynamicCache):
    def update(self, *args, **kwargs): sys.exit(0)
class Hangs(DynamicCache):
    def update(self, *args, **kwargs): time.sleep(3600)
def leaves(config): return Leaves(config=config)
def hangs(config): return Hangs(config=config)
"""


@pytest.fixture
def two_bits_fail(monkeypatch):
    """As long as the list holds something."""
    whole, broken = affine.AffineQuantizer.quantize, [True]

    def quantize(self, *args, **kwargs):
        if broken and self.bits == 2:
            raise RuntimeError("the kernel\nbroke")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(affine.AffineQuantizer, "quantize", quantize)
    return broken


@pytest.fixture
def caches(tmp_path):
    (tmp_path / "foreign_caches.py").write_text(CACHES)


REASON = "RuntimeError: the kernel"


@pytest.mark.parametrize("by", ["scheme", "layer"])
def test_errors(kvdelta, two_bits_fail, unrendered, by):
    code, out, err = kvdelta("errors", *BOTH, "--out", "run", "--by", by)
    assert code == 4
    assert f"{BAD} failed, the others go on: {REASON}" in err
    assert err.splitlines()[-1] == f"failed: {BAD}: {REASON}"
    (failed,) = [line.split() for line in out.splitlines() if line.strip().startswith(BAD)]
    assert failed[1] == "failed"
    good = [line.split() for line in out.splitlines() if line.strip().startswith(GOOD)]
    assert len(good) == (1 if by == "scheme" else 2)
    assert load_measurement("run", "errors").failed == {BAD: REASON}
    code, out, _ = kvdelta("errors", *BOTH, "--out", "run", "--format", "json")
    assert code == 4
    alone = json.loads(kvdelta("errors", "--scheme", GOOD, "--out", "alone", "--format", "json")[1])
    assert json.loads(out) == [*alone, {"scheme": BAD, "error": REASON}]


def test_sensitivity(kvdelta, two_bits_fail, unrendered):
    code, out, err = kvdelta("sensitivity", "--scheme", BAD, "--scheme", GOOD, "--out", "run", "--format", "csv")
    assert (code, err.splitlines()[-1]) == (4, f"failed: {BAD}: {REASON}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["error"] for row in rows if row["scheme"] == BAD] == [REASON]
    alone = list(csv.DictReader(io.StringIO(kvdelta("sensitivity", "--scheme", GOOD, "--format", "csv")[1])))
    assert [{name: row[name] for name in alone[0]} for row in rows if row["scheme"] == GOOD] == alone


def test_allocate_chooses_among_the_others(kvdelta, two_bits_fail, unrendered, tmp_path):
    words = ["--scheme", "asym3:group_size=16", "--budget", "5", "--windows", "2", "--out", "run"]
    code, out, err = kvdelta("allocate", *BOTH, *words)
    assert (code, err.splitlines()[-1]) == (4, f"failed: {BAD}: {REASON}")
    assert "Bits by layer" in out
    assert "asymmetric:bits=2" not in (tmp_path / "run/maps/map.json").read_text()


def test_what_has_failed_is_measured_again_when_that_is_asked_for(kvdelta, two_bits_fail, unrendered):
    assert kvdelta("errors", *BOTH, "--out", "run")[0] == 4
    two_bits_fail.clear()
    assert kvdelta("errors", *BOTH, "--out", "run")[0] == 4  # the record is printed again
    code, out, err = kvdelta("errors", *BOTH, "--out", "run", "--retry-failed", "--format", "json")
    assert code == 0
    assert f"{BAD} failed: all windows are measured again" in err
    assert json.loads(out) == json.loads(kvdelta("errors", *BOTH, "--out", "other", "--format", "json")[1])


def test_when_all_fail_the_command_says_why(kvdelta, two_bits_fail):
    code, out, err = kvdelta("errors", "--scheme", BAD)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"kvdelta: every scheme failed; the first: {BAD}: {REASON}"


@pytest.mark.parametrize("command", ["schemes", "decode"])
def test_bench(kvdelta, caches, command):
    words = ["--contexts", "64", "--cache", "foreign_caches:leaves", "--cache", "foreign_caches:hangs", "--out", "run"]
    code, out, _ = kvdelta("bench", command, "--scheme", GOOD, *words, "--time-limit", "1")
    assert code == 4
    assert "left out: foreign_caches:leaves, 64 tokens: SystemExit: 0" in out
    assert "left out: foreign_caches:hangs, 64 tokens: TookTooLong: it took longer than 1 s (--time-limit)" in out
    assert GOOD in load_bench("run").names
    assert kvdelta("bench", "show", "run")[0] == 4


def test_tasks(kvdelta, caches, files, tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        "\n".join(json.dumps({"context": "w1 w2 w3 w4 " * 30, "question": "w5", "answer": f"w{i}"}) for i in (6, 7))
    )
    given = ["--model", str(files / "model"), "--device", "cpu", "--task-file", "mine.jsonl", "--scheme", GOOD]
    words = ["--cache", "foreign_caches:leaves", "--cache", "foreign_caches:hangs", "--out", "run", "--time-limit", "1"]
    code, _, err = kvdelta("tasks", *given, "--scheme", "int8:group_size=16", *words, "--drop", "int8:group_size=16")
    assert code == 4
    assert "failed: foreign_caches:leaves: SystemExit: 0" in err.splitlines()
    record = load_tasks("run")
    errors = {one.label: one.error for one in record.contenders}
    assert errors[GOOD] is None
    assert errors["foreign_caches:hangs"] == "TookTooLong: it took longer than 1 s (--time-limit)"
    assert errors["int8:group_size=16"] == "dropped after 0 samples (--drop)"
    assert len(record.samples) == 2
    code, _, err = kvdelta("tasks", *given, "--drop", "kivi2")
    assert code == 2
    assert "drop=kivi2: it is none of the schemes that can be dropped here" in err


def test_replay(kvdelta, caches, files, two_bits_fail):
    given = ["--model", str(files / "model"), "--prompts", str(files / "text.txt"), "--device", "cpu", "--free-run"]
    sizes = ["--prompt-count", "1", "--prompt-length", "32", "--tokens", "8", "--out", "run"]
    sizes += ["--scheme", "int8:group_size=16"]
    words = [*given, *sizes, *BOTH, "--cache", "foreign_caches:hangs", "--time-limit", "1"]
    code, out, err = kvdelta("replay", *words, "--drop", "int8:group_size=16")
    assert code == 4
    assert "foreign_caches:hangs: TookTooLong" in err
    errors = {one.label: one.error for one in load_steps("run").contenders}
    assert errors[BAD] == REASON
    assert errors["int8:group_size=16"] == "dropped after 0 windows (--drop)"
    assert errors[GOOD] is None
    two_bits_fail.clear()
    code, out, _ = kvdelta("replay", *words, "--retry-failed", "--format", "json")
    assert code == 4  # it hangs as before
    errors = {one.label: one.error for one in load_steps("run").contenders}
    assert {label for label, error in errors.items() if error} == {"foreign_caches:hangs"}
    assert all(row["kl"] is not None for row in json.loads(out) if row["scheme"] == BAD)


def test_audit_and_import_keep_the_time_limit(kvdelta, caches, tmp_path):
    code, _, err = kvdelta("audit", "--cache", "foreign_caches:hangs", "--out", "run", "--time-limit", "1")
    assert code == 4
    assert "failed: foreign_caches:hangs: TookTooLong" in err
    (tmp_path / "slow_import.py").write_text("import time; time.sleep(3600)")
    for command in (["audit"], ["compare"], ["bench", "schemes"]):
        code, out, err = kvdelta(*command, "--cache", "slow_import:make", "--time-limit", "1")
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].endswith("TookTooLong: it took longer than 1 s (--time-limit)")


def test_sweep_drops_a_scheme(kvdelta, files, tmp_path):
    words = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu", "--windows", "2"]
    words += ["--depths", "32,64", "--score-length", "32", "--out", "run", "--drop", BAD]
    code, _, err = kvdelta("sweep", *words, *BOTH)
    assert code == 4
    runs = [load_run(path.parent) for path in (tmp_path / "run").rglob("run.json")]
    assert len(runs) == 2
    assert [[one.error for one in run.contenders] for run in runs] == [
        [None, None, "dropped after 0 windows (--drop)"]
    ] * 2
    code, _, err = kvdelta("sweep", *words, "--scheme", GOOD)
    assert code == 2
    assert f"drop={BAD}: it is none of the schemes" in err
