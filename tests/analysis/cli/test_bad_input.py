"""What a user may type by mistake, or out of malice: one line, exit code 2, and nothing is scored."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import tiny_config

ROOT = Path(__file__).parents[3]
INT8 = ["--scheme", "int8:group_size=16"]


def refused(kvdelta, *words):
    code, out, err = kvdelta("compare", "--windows", "1", *words)
    said = [line for line in err.splitlines() if line.startswith("kvdelta: ")]
    assert (code, out, len(said)) == (2, "", 1), err
    assert "Traceback" not in err
    return said[0]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file", "the run folder file cannot be used: it is no folder"),
        ("file/below", "cannot be used: Not a directory"),
        ("/dev/null", "the run folder /dev/null cannot be used: it is no folder"),
        ("x" * 300, "cannot be used: File name too long"),
    ],
)
def test_an_out_that_is_no_folder(kvdelta, tmp_path, out, said):
    (tmp_path / "file").touch()
    assert said in refused(kvdelta, *INT8, "--out", out)


MAPS = {
    "no object": ([1], "a map of layers has"),
    "no default": ({"layers": {"0": "int8"}}, "default"),
    "an empty range": ({"default": "exact", "layers": {"5-3": "int8"}}, "'5-3' is no layer"),
    "layers twice": ({"default": "exact", "layers": {"0": "int8", "0-1": "int4"}}, "layer 0"),
    "itself": ({"default": "@map.json"}, "the map names itself"),
    "a billion layers": ({"default": "exact", "layers": {"0-999999999": "int8"}}, "999999999"),
    "a list": ({"default": ["int8"]}, "default"),
}


@pytest.mark.parametrize("kind", MAPS)
def test_maps(kvdelta, tmp_path, kind):
    content, said = MAPS[kind]
    (tmp_path / "map.json").write_text(json.dumps(content))
    assert said in refused(kvdelta, "--scheme", "@map.json")


def test_json_without_end(kvdelta, tmp_path):
    (tmp_path / "map.json").write_text("[" * 100_000)
    assert "nested too deep" in refused(kvdelta, "--scheme", "@map.json")
    (tmp_path / "map.json").write_text('{"default": "exact", "default": "int8"}')
    assert "stands twice" in refused(kvdelta, "--scheme", "@map.json")


def test_specs_without_end(kvdelta):
    assert "none that can be meant" in refused(kvdelta, "--scheme", "hadamard(" * 1000 + "int4" + ")" * 1000)
    assert "has 5000 characters" in refused(kvdelta, "--scheme", "x" * 5000)
    assert "one line of text" in refused(kvdelta, "--scheme", "int8\nint4")


@pytest.mark.parametrize(
    ("facts", "said"), [({}, "does not say what the calibration was made of"), ({"text": {}}, "bits=None")]
)
def test_calibrations_with_missing_fields(files, tmp_path, facts, said):
    """In a process of its own: the checks of types that tests have would name another error."""
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "three.safetensors")
    (tmp_path / "three.json").write_text(json.dumps(facts))
    words = ["--model", files / "model", "--text", files / "text.txt", "--device", "cpu", "--windows", "1"]
    spec = "kvquant:bits=3,calibration=three.safetensors"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kvdelta.analysis.cli.main",
            "compare",
            *words,
            "--window-length",
            "128",
            "--score-length",
            "32",
            "--scheme",
            spec,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_tokenizer_of_another_model(kvdelta, files, tmp_path):
    shutil.copytree(files / "model", tmp_path / "other")
    LlamaForCausalLM(tiny_config(vocab_size=100)).save_pretrained(tmp_path / "other")
    said = refused(kvdelta, *INT8, "--model", str(tmp_path / "other"))
    assert (
        "the tokenizer of other gives token 127, and the model knows 100 (0 to 99): they do not belong together" in said
    )


def test_records_that_are_none(kvdelta, tmp_path):
    for content in (
        "",
        "[" * 100_000,
        "[]",
        '{"schema_version": "\\n"}',
        '{"schema_version": 1, "windows": 0}',
        "\xff\xfe",
    ):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text(content, encoding="latin-1")
        for command in ("show", "verify"):
            code, out, err = kvdelta(command, "run")
            assert code == 2
            assert "Traceback" not in out + err
            assert len(err.splitlines()) == 1
