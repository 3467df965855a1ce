"""The command line as its user meets it: a tiny model folder, a text file, real commands, exit codes."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from kvdelta.harness.records.run_folder import load_run, save_run
from kvdelta.harness.subject import imports

from ...conftest import tiny_config

SCHEMES = ["--scheme", "int8:group_size=16", "--scheme", "asym2:group_size=16"]


def test_compare_prints_a_table_and_leaves_a_record(kvdelta, tmp_path):
    code, out, err = kvdelta("compare", *SCHEMES, "--windows", "3", "--out", "run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "model"
    assert lines[1] == "text.txt: 3 windows, prefix 96 + suffix 32 tokens, two-pass, float32 on cpu"
    rows = [line.split()[0] for line in lines if line.strip()[:3] in ("exa", "int", "asy")]
    assert rows == ["exact", "int8:group_size=16", "asym2:group_size=16"]
    assert re.search(r"^loaded model and text\.txt in \d+\.\d s$", err, re.M)
    assert "window 3/3" in err
    assert "record: run" in err
    run = load_run("run")
    assert run.command.startswith("kvdelta compare --model")
    assert run.threads >= 1
    assert run.settings.attention == "sdpa-shared-heads"
    timings = json.loads((tmp_path / "run" / "timings.json").read_text())
    assert len(timings["seconds"]["prefill"]) == 3


def test_the_default_folder_is_found_again(kvdelta):
    first = kvdelta("compare", *SCHEMES, "--windows", "2")
    again = kvdelta("compare", *SCHEMES, "--windows", "2")
    assert again[:2] == first[:2]
    assert "complete; its record is printed again" in again[2]


def test_csv_has_its_columns(kvdelta):
    code, out, _ = kvdelta("compare", *SCHEMES, "--windows", "2", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    promised = "scheme,ppl,delta_ppl,delta_pct,delta_nll,delta_nll_se,kl,top1,bits,compression,key_coverage,value_coverage,coverage"
    assert code == 0
    assert set(promised.split(",")) <= set(rows[0])
    assert [row["scheme"] for row in rows] == ["exact", "int8:group_size=16", "asym2:group_size=16"]
    assert float(rows[2]["bits"]) == 4
    assert float(rows[1]["delta_ppl"]) == pytest.approx(float(rows[1]["ppl"]) - float(rows[0]["ppl"]))


def test_rows_by_bits_and_by_kl(kvdelta):
    specs = [
        word
        for spec in ("asym2:group_size=16", "int8:group_size=16", "asym4:group_size=16")
        for word in ("--scheme", spec)
    ]
    kvdelta("compare", *specs, "--windows", "2", "--out", "run")
    order = {}
    for sort in ("run", "bits", "kl"):
        out = kvdelta("show", "run", "--sort", sort, "--baseline", "asym4:group_size=16", "--format", "csv")[1]
        order[sort] = [row["scheme"].split(":")[0] for row in csv.DictReader(io.StringIO(out))]
    assert order["run"] == ["exact", "asym2", "int8", "asym4"]
    assert order["bits"] == order["kl"] == ["exact", "int8", "asym4", "asym2"]
    table = kvdelta("show", "run", "--sort", "bits", "--baseline", "asym4:group_size=16")[1]
    assert next(line for line in table.splitlines() if "baseline" in line and "asym4" in line)


def test_json_has_sign_flip_holm_and_iid_figures(kvdelta):
    _, out, _ = kvdelta("compare", *SCHEMES, "--windows", "3", "--format", "json", "--out", "run")
    content = json.loads(out)
    row = content["rows"][2]
    assert row["p_sign_flip"] in (0.25, 0.5, 0.75, 1)  # of three windows
    assert row["p_holm"] >= row["p"]
    assert row["iid_log_ratio"] == pytest.approx(row["delta_nll"], abs=1e-12)
    assert row["iid_log_ratio_se"] > 0
    assert content["noise_floor"]["kl"] >= 0
    assert load_run("run").summary == content["rows"]


def test_show_any_scheme_against_any_other(kvdelta):
    kvdelta("compare", *SCHEMES, "--windows", "3", "--out", "run")
    code, out, _ = kvdelta("show", "run", "--baseline", "int8:group_size=16", "--format", "csv")
    rows = {row["scheme"]: row for row in csv.DictReader(io.StringIO(out))}
    assert code == 0
    assert float(rows["int8:group_size=16"]["delta_nll"]) == 0
    _, plain, _ = kvdelta("show", "run", "--format", "csv")
    exact = {row["scheme"]: row for row in csv.DictReader(io.StringIO(plain))}
    difference = float(exact["asym2:group_size=16"]["delta_nll"]) - float(exact["int8:group_size=16"]["delta_nll"])
    assert float(rows["asym2:group_size=16"]["delta_nll"]) == pytest.approx(difference, abs=1e-12)
    code, out, _ = kvdelta("show", "run", "--format", "md")
    assert "| exact |" in out


def test_compare_against_another_baseline(kvdelta):
    _, out, _ = kvdelta("compare", *SCHEMES, "--windows", "2", "--baseline", "asym2:group_size=16", "--format", "json")
    content = json.loads(out)
    assert content["baseline"] == "asym2:group_size=16"
    assert content["rows"][2]["delta_nll"] == 0
    assert content["rows"][0]["delta_nll"] < 0


def test_single_pass_is_not_believed(kvdelta):
    code, out, err = kvdelta("compare", *SCHEMES, "--windows", "2", "--protocol", "single-pass")
    assert code == 3
    assert out.count("cache not read") == 2
    assert "losses bit-identical" in err
    code, _, err = kvdelta("show", str(next(iter(Path("runs").iterdir()))))
    assert code == 3


def test_stepwise(kvdelta):
    code, out, _ = kvdelta("compare", *SCHEMES, "--windows", "1", "--protocol", "stepwise", "--step", "8")
    assert code == 0
    assert "stepwise (step 8)" in out


def test_audit_of_any_cache(kvdelta, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from transformers import DynamicCache, QuantizedCache\n"
        "class Forgetful(DynamicCache):\n"
        "    def update(self, keys, values, layer, *args, **kwargs):\n"
        "        keys, values = super().update(keys, values, layer, *args, **kwargs)\n"
        "        past = keys.shape[2] - 32\n"
        "        return (keys, values) if past <= 0 else (keys.index_fill(2, keys.new_tensor([0]).long(), 0.0), values)\n"
        "def exact(config): return DynamicCache(config=config)\n"
        "def forgetful(config): return Forgetful(config=config)\n"
        "def hqq(config): return QuantizedCache('hqq', config, nbits=2, q_group_size=16, residual_length=16)\n"
        "def broken(config): raise RuntimeError('no such thing')\n"
    )
    code, out, err = kvdelta("audit", "--cache", "mine:hqq")
    assert (code, "mine:hqq" in out, "audit passed" in err) == (0, True, True)
    code, _, err = kvdelta("audit", "--cache", "mine:exact")
    assert code == 3
    assert "audit failed: mine:exact: cache not read" in err
    code, _, err = kvdelta("audit", "--cache", "mine:forgetful")
    assert code == 3
    assert "value coverage 0" in err
    code, out, err = kvdelta("audit", "--cache", "mine:broken")
    assert (code, "audit passed" in err) == (4, False)
    assert "\nfailed: mine:broken: RuntimeError: no such thing\n" in err
    assert "mine:broken: failed: RuntimeError: no such thing" in out


def test_kivi_against_int4_in_miniature(kvdelta, unrendered, tmp_path, files):
    """Heads of 64 channels, as the published settings group them, and a prefix longer than KIVI's residual."""
    torch.manual_seed(0)
    wide = LlamaForCausalLM(tiny_config(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))
    wide.save_pretrained(tmp_path / "wide")
    for file in (files / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "wide")
    words = ["--model", "wide", "--text", str(files / "text.txt"), "--device", "cpu", "--out", "run"]
    sizes = ["--windows", "2", "--window-length", "320", "--score-length", "32"]
    code, out, _ = kvdelta("reproduce", "kivi-vs-int4", *words, *sizes)
    assert code == 0
    titles = ("Published settings", "Asymmetric, groups of 32: ΔNLL ± SE", "One change at a time")
    assert all(title in out for title in titles)
    grid = [line for line in out.splitlines() if line.strip().startswith(("K token", "K channel"))]
    assert [line.count("±") for line in grid] == [4] * 4
    assert "At 5.00 against 5.00 measured bits, int4:group_size=16 loses" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("K error, per token / per channel") == 1
    for title in ("Channels that stand out", "Errors by layer", "KIVI against naive INT4"):
        assert title in page


def test_schemes_lists_every_family(kvdelta, measured_once):
    from kvdelta.schemes import SCHEMES

    for format in ("table", "md", "csv", "json"):
        code, out, _ = kvdelta("schemes", "--format", format)
        assert code == 0
        assert all(name in out for name in SCHEMES)
    exact = next(row for row in json.loads(out) if row["scheme"] == "exact")
    assert exact["bits K / V"] == "16.00 / 16.00"


BAD = {
    "unknown scheme": (["compare", "--scheme", "int5"], "did you mean 'int"),
    "misspelled cache": (["compare", "--scheme", "hf-hq:bits=4"], "did you mean 'hf-hqq'"),
    "window without a size": (["compare", "--scheme", "sliding-window"], "exactly one of tokens and bits"),
    "window too large": (["compare", "--scheme", "sliding-window:tokens=96"], "nothing would be evicted"),
    "unknown field": (["compare", "--scheme", "kivi:bit=2"], "did you mean 'bits'?"),
    "unknown value": (["compare", "--scheme", "kivi:bits=5"], "bits=.5. is not one of 1, 2, 3, 4, 8"),
    "cannot pack": (["compare", "--scheme", "asym3:group_size=12"], "whole bytes"),
    "block not divided": (["compare", "--scheme", "kivi:residual_length=48"], "does not divide the block of 48"),
    "score_length": (["compare", "--window-length", "64", "--score-length", "64"], "score_length is 64"),
    "positions": (["compare", "--window-length", "1024", "--score-length", "64"], "1024.*512"),
    "short text": (["compare", "--window-length", "300", "--score-length", "32", "--text", "short.txt"], "window"),
    "empty text": (["compare", "--text", "empty.txt"], "empty.txt. is empty"),
    "no text": (["compare", "--text", "wikitext2"], "did you mean .wikitext-2"),
    "residual": (["compare", "--scheme", "kivi2:group_size=8"], "a prefix of 96 tokens would leave every key exact"),
    "windows": (["compare", "--windows", "0"], "windows is 0"),
    "many windows": (["compare", "--windows", "1000"], "1000"),
    "not a number": (["compare", "--windows", "many"], "'many' is neither a whole number nor all"),
    "format": (["compare", "--format", "xml"], "'xml' is not one of"),
    "baseline": (["compare", *SCHEMES, "--baseline", "kivi2"], "not among the schemes"),
    "no model": (["compare", "--model", "./nowhere"], 'model path "./nowhere" does not exist'),
    "device": (["compare", "--device", "tpu"], 'device "tpu" is not available here; choose one of: cpu'),
    "dtype": (["compare", "--dtype", "int8"], 'unknown dtype "int8"; choose one of: float32'),
    "no run": (["show", "nowhere"], "nowhere is no run folder"),
    "no factory": (["audit", "--cache", "json"], "give module:factory"),
    "no module": (["audit", "--cache", "no_such_module:make"], "cannot be imported"),
    "not callable": (["audit", "--cache", "json:nothing"], "has no callable 'nothing'"),
    "step alone": (["compare", "--step", "4"], "belongs to the stepwise protocol"),
    "no such command": (["compair"], "No such command"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(kvdelta, tmp_path, case):
    words, message = BAD[case]
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    (tmp_path / "empty.txt").write_text(" \n")
    code, out, err = kvdelta(*words)
    assert code == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("kvdelta: ")
    assert re.search(message, last), last
    said_before = [line for line in err.strip().splitlines()[:-1] if not line.startswith("loaded ")]
    assert said_before == []


def test_another_run_in_the_folder_is_refused(kvdelta):
    kvdelta("compare", *SCHEMES, "--windows", "1", "--out", "run")
    code, _, err = kvdelta("compare", *SCHEMES, "--windows", "2", "--out", "run")
    assert code == 2
    assert "run holds another run (it differs in windows); choose another folder with --out" in err


def test_an_unfinished_run_says_so(kvdelta):
    kvdelta("compare", *SCHEMES, "--windows", "2", "--out", "run")
    run = load_run("run")
    run.status = "running"
    run.windows, run.batches = run.windows[:1], run.batches[:1]
    save_run(run, Path("run"))
    code, _, err = kvdelta("show", "run")
    assert (code, "run is not complete: 1 of 2 windows" in err) == (0, True)
    run.windows, run.batches = [], []
    save_run(run, Path("run"))
    code, _, err = kvdelta("show", "run")
    assert (code, "has no finished window yet" in err) == (2, True)


def test_functions_of_hqq_are_compiled_when_called(monkeypatch):
    """The stand-in for torch.compile must compile what is called, with what it was given."""
    seen = []

    def compile(function, **how):
        seen.append((function.__name__, how))
        return function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(imports.importlib, "import_module", lambda name: decorate())
    made = {}

    def decorate():
        @torch.compile
        def plain(x):
            return x + 1

        @torch.compile(fullgraph=True)
        def with_options(x):
            return x + 2

        made.update(plain=plain, with_options=with_options)

    imports.import_quickly()
    assert torch.compile is compile
    assert seen == []
    assert (made["plain"](1), made["plain"](1), made["with_options"](1)) == (2, 2, 3)
    assert seen == [("plain", {}), ("with_options", {"fullgraph": True})]


def test_schemes_of_an_engine(kvdelta):
    code, out, _ = kvdelta("schemes", "--engine", "mlx-lm", "--format", "md")
    assert code == 0
    assert "| mlx-lm/kv-bits-4 | mlx:bits=4 | 4.50 / 4.50 |" in out
    code, _, err = kvdelta("schemes", "--engine", "mlx")
    assert code == 2
    assert "no engine 'mlx'; did you mean 'mlx-lm'" in err
    assert kvdelta("schemes", "--engine", "vllm", "--detail", "kivi")[0] == 2


def test_schemes_in_detail(kvdelta, measured_once):
    code, out, _ = kvdelta("schemes", "--detail", "kvarn")
    assert code == 0
    assert all(part in out for part in ("formula", "fails at", "arXiv 2606.03458"))
    code, _, err = kvdelta("schemes", "--detail", "kvarm")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'kvarn'" in err


def test_calibrate_then_compare(kvdelta, files, tmp_path):
    """The user's way: calibrate on a training text, score on another; the same text is refused unless asked for."""
    words = (files / "text.txt").read_text().split()
    (tmp_path / "train.txt").write_text(" ".join(reversed(words)))
    shared = ["--model", str(files / "model"), "--device", "cpu", "--window-length", "128", "--score-length", "32"]
    train = ["--text", str(tmp_path / "train.txt"), "--windows", "3"]
    code, out, err = kvdelta("calibrate", *shared, *train, "--scheme", "kvquant:bits=4", "--out", "four")
    assert code == 0
    assert out == "kvdelta compare --scheme kvquant:bits=4,calibration=four.safetensors\n"
    assert "window 3/3 captured" in err
    spec = "kvquant:bits=4,calibration=four.safetensors"
    code, out, _ = kvdelta("compare", "--scheme", spec, "--windows", "2", "--out", "run")
    assert code == 0
    assert f"{spec}: calibrated on train.txt" in out
    kept = load_run("run").contenders[1].spec["calibrated_on"]
    assert (kept["name"], sorted(kept)) == ("train.txt", ["name", "sha256", "token_sha256"])
    code, _, err = kvdelta("compare", "--scheme", spec, *train)
    assert code == 2
    assert re.search(r"has seen this text \(train\.txt; \d+ of the \d+ runs of 64 tokens .+ --same-text", err)
    (tmp_path / "longer.txt").write_text(f"{' '.join(words)} {(tmp_path / 'train.txt').read_text()}")
    code, _, err = kvdelta("compare", "--scheme", spec, "--text", str(tmp_path / "longer.txt"), "--windows", "all")
    assert code == 2
    assert "has seen this text (train.txt; " in err
    code, _, _ = kvdelta("compare", "--scheme", spec, *train, "--same-text", "--out", "same")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheme", "int4", "--out", "x"], "needs no calibration"),
        (["--scheme", "kvquant:bits=3"], "name it with --out"),
        (["--scheme", "kvquant:bits=9", "--out", "x"], "bits='9' is not one of 2, 3, 4"),
    ],
)
def test_what_calibrate_refuses(kvdelta, words, message):
    code, _, err = kvdelta("calibrate", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
