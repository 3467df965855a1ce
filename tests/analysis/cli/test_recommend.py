"""`recommend` as its user meets it, on the tiny model."""

import json
import re
import shutil

import numpy as np
import pytest

from kvdelta.analysis.reading.summary import summarize
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.tokens import load_each

from ...conftest import tiny_config

CANDIDATES = [f"asym{bits}:group_size=16" for bits in (2, 4, 8)]
FEW = ["--windows", "6", "--race-windows", "6", "--step", "8"]
GIVEN = [word for spec in CANDIDATES for word in ("--scheme", spec)]


@pytest.fixture
def small_kivi(monkeypatch):
    """Uniform KIVI that packs something of a prefix of 96 tokens."""
    from kvdelta.analysis.cli import recommending

    small = "kivi:bits=2,group_size=16,residual_length=16"
    monkeypatch.setattr(recommending, "BASELINES", {small: 2})
    return small


def test_the_planted_winner(kvdelta, tmp_path, small_kivi):
    """Of the same grid more bits are better: the largest within the budget wins, and fresh windows say so."""
    code, out, err = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, "--out", "run")
    assert code == 0, err
    assert "Within 6.1 bits: asym4:group_size=16 (6.00 bits)." in out
    assert 'parse_scheme("asym4:group_size=16")' in out
    assert "asym8" not in out
    said = json.loads((tmp_path / "run/recommend.json").read_text())
    assert said["recommended"] == "asym4:group_size=16"
    assert {row["scheme"] for row in said["race"]} == set(CANDIDATES[:2])
    race = load_run(tmp_path / "run/race/1-4/1-model")
    fresh = load_run(tmp_path / "run/verify/1-model/stepwise-8")
    assert race.settings.protocol == fresh.settings.protocol == "stepwise"
    scored = [{token for one in run.windows for token in range(one.start, one.start + 128)} for run in (race, fresh)]
    assert scored[0]
    assert not scored[0] & scored[1]
    assert small_kivi in [contender.label for contender in fresh.contenders]
    assert re.search(r"[Uu]niform KIVI \(kivi:bits=2,group_size=16,residual_length=16, \d", out)
    verified = next(
        row for row in said["verified"] if row["scheme"] == said["recommended"] and row["protocol"] != "two-pass"
    )
    there = summarize(fresh, nll=None)[1]
    assert there.name == "asymmetric:bits=4,group_size=16"
    assert (verified["same"], verified["kl_999"]) == (there.same, there.kl_999)
    assert out.count("99.9 %   same %") == 2
    assert kvdelta("show", "run") == (0, out, "")
    for format in ("md", "json", "csv"):
        again = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, "--out", "run", "--format", format)
        shown = kvdelta("show", "run", "--format", format)
        assert shown[:2] == again[:2]


def test_two_equal_ones(kvdelta, tmp_path):
    """The same quantizer, groups cut alike: neither can be better. Their tokens are those of all rounds."""
    same = ["--scheme", "asym4:group_size=16", "--scheme", "asym4:group_size=all"]
    code, out, _ = kvdelta("recommend", "--budget", "6.1", *same, *FEW, "--out", "run")
    assert code == 0
    assert "Not compared with uniform KIVI, which cannot be used here: scheme kivi:bits=2,group_size=32" in out
    assert "No difference on fresh windows from asym4:group_size=" in out
    rounds = [tmp_path / f"run/race/{part}/1-model" for part in ("1-4", "5-6")]
    kl, tvd = (np.concatenate([load_each(one, load_run(one), what)[1] for one in rounds]) for what in ("kl", "tvd"))
    raced = json.loads((tmp_path / "run/recommend.json").read_text())["race"]
    assert [row["kl_999"] for row in raced] == pytest.approx([np.quantile(kl, 0.999)] * 2)
    assert [row["same"] for row in raced] == pytest.approx([100 * (1 - tvd.mean())] * 2)


def test_the_same_command_goes_on(kvdelta, tmp_path):
    words = ["recommend", "--budget", "6.1", *GIVEN, *FEW, "--format", "json"]
    first = kvdelta(*words)
    again = kvdelta(*words)
    assert first[:2] == again[:2]
    assert "holds this run already" in again[2]
    said = json.loads(first[1])
    assert said["race"][0]["scheme"] == said["recommended"] == "asym4:group_size=16"


def test_two_models_called_alike_and_all_windows(kvdelta, files, tmp_path, small_kivi):
    """Each has its own figures; all windows are those of the second half."""
    from transformers import LlamaForCausalLM

    shutil.copytree(files / "model", tmp_path / "again/model")
    LlamaForCausalLM(tiny_config(initializer_range=0.05)).save_pretrained(tmp_path / "again/model")
    words = ["--model", str(files / "model"), "--model", str(tmp_path / "again/model"), "--windows", "all"]
    code, out, err = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, *words, "--format", "json")
    assert code == 0, err
    said = json.loads(out)
    assert said["models"] == ["model (1)", "model (2)"]
    more = {row["model"]: row["more"] for row in said["verified"] if row["more"] is not None}
    assert len(set(more.values())) == len(said["models"])
    assert {row["windows"] for row in said["verified"]} == {11}


def test_by_nll(kvdelta):
    code, out, _ = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, "--by", "nll")
    assert code == 0
    assert "ΔNLL [95 % at any time]" in out
    assert "It costs: ΔNLL " in out
    assert "KL [" not in out


def test_markdown_and_csv(kvdelta):
    code, out, _ = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, "--format", "md")
    assert code == 0
    assert out.rstrip().endswith("```")
    assert "| 1. asym4:group\\_size=16 | 6.00 |" in out or "| 1. asym4:group_size=16 | 6.00 |" in out
    code, out, _ = kvdelta("recommend", "--budget", "6.1", *GIVEN, *FEW, "--format", "csv")
    assert code == 0
    assert out.splitlines()[1].startswith("asym4:group_size=16,6.0")


def test_all_families_over_two_models(kvdelta, files, tmp_path):
    """A model of each kind: one whose keys have a bias, which unbiased(…) is for, and one without."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    other = LlamaForCausalLM(tiny_config(attention_bias=True)).eval()
    for layer in other.model.layers:
        layer.self_attn.k_proj.bias.data.normal_(0, 3)
    other.save_pretrained(tmp_path / "other")
    for file in (files / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "other")
    words = ["--model", str(tmp_path / "other"), "--keep", "5", "--windows", "4", "--race-windows", "4", "--step", "16"]
    code, out, err = kvdelta("recommend", "--budget", "4.5", *words, "--out", "run")
    assert code == 0, err
    assert "5 raced on up to 4 windows" in out
    assert "did not race: more loss was predicted" in out
    said = json.loads((tmp_path / "run/recommend.json").read_text())
    assert said["models"] == ["model", "other"]
    assert any(one["spec"].startswith("unbiased(") for one in said["candidates"])
    assert len(said["candidates"]) > 20
    assert {row["model"] for row in said["verified"]} == {"model", "other"}
    assert all(one["bits"] <= 4.505 for one in said["candidates"])
    assert out.count("It costs on") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0"], "give measured bits a number between 0 and 16"),
        (
            ["--budget", "2", *GIVEN, *FEW],
            r"no candidate keeps 2 measured bits .* the nearest: asym2:group_size=16 \(4.00\), asym4",
        ),
        (["--budget", "4", "--scheme", "asym4", "--engine", "vllm"], "--engine and --scheme both say"),
        (["--budget", "4", "--engine", "vlm"], "did you mean 'vllm'"),
        (["--budget", "4", "--scheme", "asym5"], "no scheme 'asym5'"),
        (
            ["--budget", "8", *GIVEN, *FEW, "--windows", "12"],
            "12 windows are wanted in a half of the text, which has 11",
        ),
        (["--budget", "6", "--race-windows", "1"], "race-windows"),
        (["--budget", "6", "--scheme", "exact", *FEW], "none can be used: those that are lossless do not race"),
    ],
)
def test_bad_input(kvdelta, words, message):
    code, out, err = kvdelta("recommend", *words)
    assert code == 2
    assert re.search(message, err)
    assert not out
    assert "Traceback" not in err
