"""Names that no file system takes, configurations that are none, and a stdout that cannot be written: one line, exit code 2."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMED = {
    "compare --model": ["compare", "--model", "{}"],
    "compare --config": ["compare", "--config", "{}"],
    "compare --config, JSON": ["compare", "--config", "{}.json"],
    "compare --text": ["compare", "--text", "{}"],
    "compare --text, a data set": ["compare", "--text", "hf:{}:train:text"],
    "compare --out": ["compare", "--windows", "1", "--out", "{}"],
    "compare --scheme": ["compare", "--scheme", "@{}"],
    "compare --cache": ["compare", "--cache", "{}:make"],
    "show": ["show", "{}"],
    "verify": ["verify", "{}"],
    "report": ["report", "{}"],
    "plot": ["plot", "{}"],
    "merge": ["merge", "{}", "{}", "--out", "merged"],
    "sweep --out": ["sweep", "--out", "{}"],
    "sweep --text": ["sweep", "--text", "{}", "--out", "run"],
    "tasks --task-file": ["tasks", "--task-file", "{}"],
    "replay --prompts": ["replay", "--prompts", "{}"],
    "errors --style": ["errors", "--style", "{}"],
    "calibrate --out": ["calibrate", "--scheme", "kvquant:bits=3", "--windows", "1", "--out", "{}"],
}


@pytest.mark.parametrize("length", [300, 5000])
@pytest.mark.parametrize("command", NAMED)
def test_a_name_that_is_too_long(kvdelta, files, monkeypatch, command, length):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [word.format("a" * length) for word in NAMED[command]]
    if command in ("calibrate --out", "sweep --out"):
        words += ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
        words += ["--window-length", "128", "--score-length", "32"]
    code, out, err = kvdelta(*words)
    assert (code, out) == (2, "")
    assert command == "verify" or err.splitlines()[-1].startswith(
        "kvdelta: "
    )  # verify ends with how many it has checked
    assert "Traceback" not in err
    assert "finished windows are kept" not in err or command == "compare --out"


def test_a_report_is_not_made_where_it_cannot_be_written(kvdelta, record_folder, tmp_path):
    code, out, err = kvdelta("report", str(record_folder), "--out", f"{'a' * 300}.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written to .: File name too long; choose another with --out" in err


def test_no_name_of_a_user_is_looked_at_in_a_way_that_raises():
    """pathlib's questions raise where the system refuses a name; those of os.path say no."""
    asked = {"is_file", "is_dir", "exists"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ("schemes", "harness", "analysis")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in asked
        if ast.unparse(node.func.value) != "os.path"
    ]
    assert found == []


CONFIGURATIONS = {
    "100,000 brackets": ("[" * 100_000, "z.yaml is nested too deep"),
    "a zero byte": ('text: "a\\0b"', '"text" has a zero byte'),
    "a zero byte in a folder's name": ('out: "\\0"', '"out" has a zero byte'),
    "a zero byte in a list": ('scheme: [int4, "\\0"]', '"scheme" has a zero byte'),
    "a date that there is not": ("windows: 2001-99-99", "z.yaml has a value that cannot be read"),
    "a tag of what it is not": ("seed: !!timestamp now", "z.yaml has a value that cannot be read"),
    "a number of 5,000 digits": (f"windows: {'9' * 5000}", "z.yaml has a value that cannot be read"),
    "lists of lists": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "no flag of this command",
    ),
    "a value of lists of lists": ("scheme: &a [[x,x,x,x,x,x,x,x,x]]", '"scheme" takes words and numbers'),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_is_none(kvdelta, tmp_path, case):
    content, said = CONFIGURATIONS[case]
    (tmp_path / "z.yaml").write_text(content)
    code, out, err = kvdelta("compare", "--config", "z.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1), err[:500]
    assert said in err
    assert len(err) < 2000


SHELL = f'{sys.executable} -m kvdelta.analysis.cli.main show "$0"'
STREAMS = {
    "a full disk": ("> /dev/full", "kvdelta: stdout cannot be written: No space left on device"),
    "closed": (">&-", "kvdelta: stdout is closed"),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("format", ["table", "json"])
def test_a_stdout_that_cannot_be_written(stream, format):
    where, said = STREAMS[stream]
    command = f"{SHELL} --format {format} {where}"
    done = subprocess.run(["sh", "-c", command, str(ROOT / "results/demo")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_without_stderr_the_result_is_alone_on_stdout():
    command = f"{SHELL} --format json"
    results = [
        subprocess.run(
            ["sh", "-c", command + more, str(ROOT / "results/demo")], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        for more in ("", " 2>&-")
    ]
    assert results[0] == results[1]
