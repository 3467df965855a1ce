"""The analyzer's commands as their user meets them."""

import csv
import io
import json
import re

import pytest

from kvdelta.analysis.plots import figures as record_figures
from kvdelta.harness.records.run_folder import load_run, save_run

TWO = ["--scheme", "int8:group_size=16", "--scheme", "asym2:group_size=16"]
GRID = [
    word
    for bits in (2, 4)
    for axes in ("", ",key_axis=channel", ",value_axis=channel", ",axis=channel")
    for word in ("--scheme", f"asym{bits}:group_size=16{axes}")
]


def figures(folder):
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert all((folder / "figures" / f"{name}.{kind}").stat().st_size for name in names for kind in ("svg", "png"))
    return names


def test_outliers(kvdelta, tmp_path):
    code, out, err = kvdelta("outliers", "--pre-rope", "--out", "run")
    assert code == 0
    assert "keys stand out more than values in" in out
    assert len(re.findall(r"^ [01] +\d", out, re.M)) == 2  # a row a layer
    assert "pre-RoPE" in out
    assert {"ratio-by-layer", "token-norms", "persistence", "heat-map-layer-0-head-0"} <= figures(tmp_path / "run")
    assert "record: run, with" in err


def test_outliers_of_a_head_in_one_window(kvdelta, unrendered):
    code, out, _ = kvdelta("outliers", "--layers", "1", "--heads", "0", "--format", "csv", "--windows", "1")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["side"], row["layer"], row["head"]) for row in rows] == [("key", "1", "0"), ("value", "1", "0")]
    assert rows[0]["persistence"] == ""  # one window has none


def test_errors(kvdelta, tmp_path):
    code, out, _ = kvdelta("errors", *TWO, "--out", "run")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("int8", "asym2"))]
    assert float(rows[0][1]) < float(rows[1][1])
    assert figures(tmp_path / "run") == {"errors-by-layer"}


def test_errors_by_head_and_by_layer(kvdelta, unrendered):
    _, out, _ = kvdelta("errors", *TWO, "--out", "run", "--by", "head", "--format", "json")
    found = json.loads(out)
    assert len(found) == 2 * 2 * 2
    assert {"scheme", "layer", "head", "key_error", "attention_kl", "output_both", "square"} <= set(found[0])
    _, out, _ = kvdelta("errors", *TWO, "--no-gradients", "--by", "layer", "--format", "md")
    assert out.count("| int8:group_size=16 |") == 2
    assert "Σ(g·e)²" not in out


def test_sensitivity(kvdelta, tmp_path):
    code, out, err = kvdelta("sensitivity", *TWO[2:], "--side", "key", "--out", "run")
    assert code == 0
    assert "Do the layers add up?" in out
    assert figures(tmp_path / "run") == {"sensitivity-by-layer"}
    assert "asymmetric:bits=2,group_size=16, key: 2 layers in" in err


def test_sensitivity_in_one_window(kvdelta, unrendered):
    _, out, err = kvdelta("sensitivity", *TWO[2:], "--windows", "1", "--format", "json")
    assert "1 window gives no interval; give --windows 2 or more" in err
    rows = json.loads(out)
    assert [(row["side"], row["layer"]) for row in rows] == [("key", 0), ("key", 1), ("value", 0), ("value", 1)]
    assert {row["delta_nll_low"] for row in rows} == {None}


def test_relate(kvdelta, unrendered, monkeypatch):
    kvdelta("errors", *GRID, "--out", "errors")
    kvdelta("compare", *GRID, "--windows", "2", "--out", "run")
    code, out, err = kvdelta("relate", "errors", "run")
    assert code == 0
    assert "all layers at once, 8 schemes" in out
    assert re.search(r"attention KL \(nats\) +[-+]?[\d.]+ \[", out)
    assert "12" in out.split("equal bits")[1].splitlines()[2]
    assert "KL agrees with itself between even and odd windows at ρ =" in out
    assert "figure: errors/figures/relate-1-kl.svg" in err
    monkeypatch.setattr(record_figures, "draw_relations", lambda *args: [])  # made above
    _, out, _ = kvdelta("relate", "errors", "run", "--format", "json")
    best = json.loads(out)[0]
    assert (best["question"], best["pairs"]) == ("all layers at once, 8 schemes", 12)


def test_plot(kvdelta, tmp_path):
    kvdelta("errors", *TWO, "--out", "errors")
    kvdelta("compare", *TWO, "--windows", "2", "--out", "run")
    drawn = (tmp_path / "errors" / "figures" / "errors-by-layer.svg").read_bytes()
    code, _, err = kvdelta("plot", "errors", "run")
    assert code == 0
    assert "figure: run/figures/bits-against-loss.png" in err
    assert (tmp_path / "errors" / "figures" / "errors-by-layer.svg").read_bytes() == drawn
    kvdelta("plot", "errors", "--style", "dark_background")
    assert (tmp_path / "errors" / "figures" / "errors-by-layer.svg").read_bytes() != drawn


def test_relate_says_what_it_leaves_out(kvdelta, record_folder, monkeypatch):
    monkeypatch.setattr(record_figures, "draw_relations", lambda *args: [])
    run = load_run(record_folder)
    run.audit.failures = {"kivi:bits=2": ["cache not read (key coverage 0)"]}
    save_run(run, record_folder)
    code, out, err = kvdelta("relate", str(record_folder))
    assert code == 0
    assert "all layers at once, 5 schemes" in out
    assert "5 schemes: left out (cache not read): kivi:bits=2\n" in err


def test_figures_need_no_model(kvdelta, unrendered, monkeypatch):
    from kvdelta.harness.subject import prepared

    kvdelta("sensitivity", *TWO[2:], "--side", "value", "--out", "run")
    monkeypatch.setattr(prepared, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    assert kvdelta("plot", "run")[0] == 0


BAD = {
    "layer": (["errors", *TWO, "--layers", "0,9"], "layer 9 does not exist.*there are 0-1"),
    "layers": (["errors", *TWO, "--layers", "a"], "'a': give numbers and ranges such as 0,5,10-12"),
    "head": (["outliers", "--heads", "2"], "KV head 2 does not exist"),
    "side": (["sensitivity", *TWO, "--side", "keys"], "side 'keys': choose key, value, both"),
    "scheme": (["errors", "--scheme", "int5"], "did you mean"),
    "style": (["errors", *TWO, "--style", "grayscal"], "no style 'grayscal'; did you mean 'grayscale'"),
    "by": (["errors", *TWO, "--by", "window"], "'window' is not one of"),
    "budget": (["allocate", *TWO, "--windows", "2", "--budget", "1"], "a budget of 1 bits is under the smallest candidates"),
    "no record": (["relate", "nowhere"], "nowhere holds no record"),
    "no such run": (["plot", "nowhere"], "nowhere holds no record"),
    "from": (["allocate", "--budget", "5", "--from", "nowhere"], "nowhere holds neither sensitivity.json nor errors.json"),
    "fit windows": (["allocate", *TWO, "--budget", "9", "--fit-windows", "99"], "99 windows to fit to are wanted that share no token"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(kvdelta, case):
    words, message = BAD[case]
    code, out, err = kvdelta(*words)
    assert code == 2
    assert out == ""
    assert re.search(message, err.strip().splitlines()[-1]), err


def test_records_that_do_not_join(kvdelta, unrendered):
    kvdelta("errors", *TWO, "--windows", "2", "--out", "errors")
    kvdelta("compare", *TWO, "--windows", "3", "--out", "run")
    code, _, err = kvdelta("relate", "errors", "run")
    assert code == 2
    assert "run and errors do not join: windows is 3" in err
