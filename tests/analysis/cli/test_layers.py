"""`--layers`: the layers of a model that has both kinds, as commands."""

import json
import shutil

import pytest
import torch

from ...conftest import SHARP, TINY

INT4 = ["--windows", "2", "--scheme", "int4:group_size=16"]


@pytest.fixture(scope="module")
def hybrid(files, tmp_path_factory):
    """A folder with a model of which the first layer slides."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("hybrid")
    kinds = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    config = Gemma3TextConfig(**TINY, **SHARP, head_dim=16, sliding_window=24, layer_types=kinds)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    for file in (files / "model").glob("tokenizer*"):
        shutil.copy(file, folder)
    return ["--model", str(folder)]


def test_a_row_of_each_kind(kvdelta, hybrid):
    code, out, _ = kvdelta(
        "compare", *hybrid, *INT4, "--layers", "full", "--layers", "sliding", "--layers", "all", "--out", "run"
    )
    assert code == 0
    assert (
        "quantized: layers 1 (layers=full); 0 (layers=sliding); 0, 1 (layers=all) of 2; the others are kept as they are"
        in out
    )
    _, out, _ = kvdelta("show", "run", "--format", "json")
    rows = json.loads(out)["rows"]
    assert [row["scheme"] for row in rows][1:] == [INT4[3], f"{INT4[3]},layers=sliding", f"{INT4[3]},layers=all"]
    assert [row["bits"] for row in rows][1:] == [5.0] * 3
    assert len({row["kl"] for row in rows}) == 4


def test_matched_rows_and_maps_too(kvdelta, hybrid, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"default": INT4[3]}))
    code, out, _ = kvdelta(
        "compare", *hybrid, *INT4, "--scheme", "@map.json", "--layers", "all", "--match-tail", "8", "--format", "json"
    )
    assert code == 0
    names = [row["name"] for row in json.loads(out)["rows"]]
    assert names[1] == "matched(symmetric:bits=4,group_size=16):tail=8,block=1,layers=all"
    assert len(names) == 2  # the map says the same


def test_the_second_trap_of_windows_too(kvdelta, hybrid, files):
    """Rows with and without equal tails, of each kind of layers."""
    words = ["--step", "8", "--match-tail", "8", "--layers", "full", "--layers", "all", "--out", "run"]
    words += ["--window-length", "128", "--score-length", "32", "--text", str(files / "text.txt"), "--device", "cpu"]
    code, out, err = kvdelta("reproduce", "decoding", *hybrid, *INT4, *words)
    assert code in (0, 3), err  # 3: two windows of a tiny model show no trap
    assert "audit failed" not in err
    assert "quantized: layers 1 (layers=full); 0, 1 (layers=all) of 2" in out
    _, out, _ = kvdelta("show", "run/stepwise-8", "--format", "json")
    names = [row["scheme"] for row in json.loads(out)["rows"]]
    both = [INT4[3], f"{INT4[3]},layers=all"]
    assert names[1:] == [*both, *(f"{one} (matched)" for one in both)]


def test_replay_stores_windows_too(kvdelta, hybrid):
    words = ["--prompt-count", "2", "--prompt-length", "40", "--tokens", "8", "--free-run", "--format", "json"]
    code, out, _ = kvdelta("replay", *hybrid, "--scheme", INT4[3], "--layers", "full", "--layers", "all", *words)
    assert code == 0
    kl = {row["scheme"]: row["kl"] for row in json.loads(out) if row["kl"]}
    assert list(kl) == [INT4[3], f"{INT4[3]},layers=all"]
    assert len(set(map(str, kl.values()))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "sliding"], "has no layer with a sliding window; leave layers=sliding out"),
        (["--layers", "half"], "choose full, sliding, all"),
        (["--layers", "all", "--scheme", "sink-window:bits=4"], "has no choice of layers"),
        (["--layers", "full", "--layers", "all", "--scheme", "int4:layers=all"], "layers is set twice"),
    ],
)
def test_bad_input(kvdelta, words, said):
    code, _, err = kvdelta("compare", *INT4, *words)
    assert code == 2
    assert said in " ".join(err.split())
