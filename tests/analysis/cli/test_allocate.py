"""`allocate` as its user meets it."""

import json
import re
from pathlib import Path

import pytest

from kvdelta.analysis.reading.summary import summarize
from kvdelta.harness.records.run_folder import load_run
from kvdelta.schemes import parse_scheme


@pytest.mark.parametrize("source", [None, "sensitivity", "errors"])
def test_allocate(kvdelta, tmp_path, source):
    words = [word for bits in (2, 4) for word in ("--scheme", f"asym{bits}:key_axis=channel,group_size=16")]
    given = ["--from", source] if source else words
    if source:
        kvdelta(source, *words, "--out", source)
    code, out, _ = kvdelta("allocate", *given, "--budget", "5", "--windows", "3", "--out", "run")
    assert code == 0
    assert "Bits by layer" in out
    run = load_run("run/verify")
    rows = {row.scheme: row for row in summarize(run)}
    assert rows["the map"].bits <= 5
    uniform = {"K 4.00 b, V 6.00 b", "K 6.00 b, V 4.00 b"}  # both uniform maps of 5 bits
    assert set(rows) == {"exact", "the map", *uniform}
    best = min(uniform, key=lambda label: rows[label].delta_nll)
    assert re.search(rf"The map .* {best}, the best of 2 uniform pairs of these bits", out)
    assert all(f"the map loses {delta} than {label}" in out for label, delta in said_of(run, uniform).items())
    (text,) = json.loads((tmp_path / "run/maps/map.json").read_text())["fitted_on"]
    fitted = {token for first, end in text["spans"] for token in range(first, end)}
    scored = {token for window in run.windows for token in range(window.start, window.start + 128)}
    assert len(fitted) == 2 * 128 if source is None else len(fitted) > 128
    assert not fitted & scored
    code, _, err = kvdelta("compare", "--scheme", "@run/maps/map.json", "--windows", "25")
    assert code == 2
    assert "has seen this text (text.txt;" in err
    code, out, _ = kvdelta("compare", "--scheme", "@run/maps/map.json", "--windows", "2", "--same-text")
    assert code == 0
    assert "@run/maps/map.json" in out


def said_of(run, labels):
    """What the map loses more or less than others, as a headline says it."""
    rows = {label: summarize(run, label)[1].delta_nll for label in labels}
    return {label: f"{abs(x):.4f} nats a token {'more' if x >= 0 else 'less'}" for label, x in rows.items()}


def test_candidates_that_are_calibrated_or_have_rules_for_layers(kvdelta, unrendered, files):
    """Layer 0 stays exact where the candidate says so, at 16 bits in the budget; kvquant is bound to the model."""
    text = [
        "--model",
        str(files / "model"),
        "--text",
        str(files / "text.txt"),
        "--window-length",
        "128",
        "--score-length",
        "32",
    ]
    kvdelta("calibrate", "--scheme", "kvquant:bits=2", "--out", "kvquant2", "--windows", "4", "--device", "cpu", *text)
    kept, calibrated = "int4:group_size=16,exact_first_layers=1", "kvquant:bits=2,calibration=kvquant2.safetensors"
    words = ["--scheme", kept, "--scheme", calibrated, "--same-text"]
    code, _, err = kvdelta("allocate", *words, "--budget", "11", "--windows", "3", "--out", "run")
    assert code == 0, err
    run = load_run("run/verify")
    rows = {row.scheme: row for row in summarize(run)}
    layers = json.loads(Path("run/maps/map.json").read_text())["layers"]
    assert {spec for sides in layers.values() for spec in sides.values()} <= {kept, calibrated}
    assert kept in rows  # 16 bits in layer 0 and 5 in layer 1, 10.5 together
    assert rows[kept].bits == pytest.approx(10.5)
    assert rows["the map"].bits <= 11
    assert parse_scheme("@run/maps/map.json").calibrated_on
    code, _, err = kvdelta("allocate", "--scheme", kept, "--budget", "11", "--windows", "3", "--out", "one")
    assert code == 0, err
    scheme = parse_scheme("@one/maps/map.json")
    assert (scheme.for_layer(0).lossless, scheme.for_layer(1).lossless) == (True, False)
