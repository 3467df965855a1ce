"""A sweep and what carries, as commands."""

import csv
import io
import json

import pytest

SMALL = ["--score-length", "16", "--windows", "3", "--device", "cpu"]
SCHEMES = ["--scheme", "int4:group_size=16", "--scheme", "asym2:group_size=16"]


@pytest.fixture
def subject(files):
    return ["--model", str(files / "model"), "--text", str(files / "text.txt")]


def test_a_sweep_ends_with_what_carries(kvdelta, subject, unrendered):
    words = ["sweep", *subject, *SMALL, *SCHEMES, "--depths", "48,96", "--out", "grid"]
    code, out, err = kvdelta(*words)
    assert code == 0, err
    assert "cell 2 of 2: model, text.txt, prefix 96 + suffix 16" in err
    assert "in all: model, text.txt, suffix 16, two-pass, float32, cpu, 3 windows" in out
    for said in (
        "The safest scheme of a budget",
        "KL by depth, the same scored tokens",
        "prefix 48 · prefix 96",
        "paired",
    ):
        assert said in out
    assert "again: kvdelta carry grid" in err
    assert "grid/figures/kl-by-depth.svg" in err

    again, shown, err = kvdelta(*words)
    assert (again, shown) == (0, out)
    assert "grid/model_text_96+16/two-pass holds this run already, complete" in err
    assert kvdelta("carry", "grid")[1] == out
    assert kvdelta("show", "grid")[0] == 0


def test_formats(kvdelta, subject, unrendered):
    kvdelta("sweep", *subject, *SMALL, *SCHEMES, "--depths", "48,96", "--out", "grid")
    rows = json.loads(kvdelta("carry", "grid", "--format", "json", "--by", "kl")[1])
    assert {row["table"] for row in rows} == {"order", "agreement", "regret", "depth"}
    order = [row for row in rows if row["table"] == "order"]
    assert [row["cell"] for row in order] == ["prefix 48", "prefix 96"] * 2
    table = list(csv.DictReader(io.StringIO(kvdelta("carry", "grid", "--format", "csv", "--by", "kl")[1])))
    assert [float(row["loss"]) for row in table if row["table"] == "order"] == [row["loss"] for row in order]
    _, out, _ = kvdelta("carry", "grid", "--format", "md", "--budget", "3", "--budget", "16")
    assert "| budget | scheme | bits | worst loss" in out
    assert "| 16.00 |" in out


def test_a_configuration_file(kvdelta, files, unrendered, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        f"model: {files / 'model'}\ntext: [{files / 'text.txt'}]\ndepths: [48, 96]\nscore-length: 16\nwindows: 3\n"
        "device: cpu\nscheme: ['int4:group_size=16', 'asym2:group_size=16']\nout: grid\nmatch_tail:\n"
    )
    code, out, err = kvdelta("sweep", "--config", "sweep.yaml")
    assert code == 0, err
    assert "3 windows" in out
    code, out, err = kvdelta("sweep", "--config", "sweep.yaml", "--windows", "2", "--out", "other")  # a flag wins
    assert code == 0, err
    assert "2 windows" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: a", 'sweep.yaml has "modle", which is no flag of this command; did you mean "model"?'),
        ("model: [a", "sweep.yaml, line 1 is no YAML:"),
        ("- model", "sweep.yaml holds no flags: give lines such as `model: [a, b]`"),
        ("model: {a: b}", 'sweep.yaml: "model" takes a value, or a list of them'),
        ("windows: many", "'many' is neither a whole number nor all"),
        ("windows: yes", "True is neither a whole number nor all"),
        ("windows: 2.7", "2.7 is neither a whole number nor all"),
        ("windows: 2026-01-01", '"windows" takes words and numbers, and 2026-01-01 is none; put it in quotes'),
        ("scheme: [{a: 1}]", '"scheme" takes words and numbers'),
        ("depths: [512, deep]", "'512,deep': give lengths of prefixes in tokens, such as 512,2048,16K"),
    ],
)
def test_a_bad_configuration_is_one_line(content, message, kvdelta, tmp_path):
    (tmp_path / "sweep.yaml").write_text(content)
    code, out, err = kvdelta("sweep", "--config", "sweep.yaml")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--config", "gone.yaml"], "the configuration gone.yaml cannot be read: No such file or directory"),
        (["sweep", "--scheme", "int5"], "int5"),
        (["sweep", "--protocol", "single-pass"], "leave --protocol single-pass out"),
        (["sweep", "--revision", "x", "--model", "a/b", "--model", "c/d"], "--revision is that of one hub id"),
        (["sweep", "--step", "4"], "add --protocol stepwise"),
        (["carry", "gone"], "gone is no run folder"),
        (["carry", "gone", "--budget", "-1"], "--budget -1: give measured bits a number, above 0"),
    ],
)
def test_bad_input_is_one_line(words, message, kvdelta):
    code, _, err = kvdelta(*words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_cell_that_fails_changes_the_exit_code(kvdelta, subject, unrendered):
    code, out, err = kvdelta("sweep", *subject, "--text", "gone.txt", *SMALL, *SCHEMES, "--window-length", "64", "--window-length", "80", "--out", "grid")  # fmt: skip
    assert code == 4
    assert "failed: model_gone.txt_48+16: no text" in err
    assert "no record of model_gone.txt_48+16: no text" in out


def test_what_does_not_compare_says_which_and_what_to_do(kvdelta, subject, unrendered):
    for out, schemes in (
        ("one", SCHEMES),
        ("two", SCHEMES[:2]),
        ("three", [*SCHEMES, "--scheme", "hqq4:group_size=16"]),
    ):
        words = ["--window-length", "64" if out == "one" else "80" if out == "two" else "96"]
        assert kvdelta("compare", *subject, *SMALL, *words, *schemes, "--out", out)[0] == 0
    code, _, err = kvdelta("carry", "one", "two", "three")
    assert code == 2
    assert "two lacks asym2:group_size=16, hqq4:group_size=16, which other cells have, and 1 more lacks some" in err
    code, out, _ = kvdelta("carry", "one", "three", "--common")
    assert code == 0
    assert "2 cells, 2 schemes" in out
