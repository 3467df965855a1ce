"""The packaged model and text, through the command that people try first."""

import csv
import io
import sys

import pytest

from kvdelta.analysis.cli import main as cli
from kvdelta.harness.records.run_folder import load_run

pytestmark = pytest.mark.real_model

# half of the default: nothing below depends on the length of the prefix, and the time does
SIZES = ["--windows", "1", "--window-length", "1024", "--score-length", "256", "--device", "cpu"]
QUANTIZED = ["transformers-hqq8", "transformers-hqq4", "transformers-hqq2", "int8", "int4"]


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """Exit code and both records of `kvdelta reproduce trap` with 1 window."""
    out = tmp_path_factory.mktemp("trap") / "run"
    argv, sys.argv = sys.argv, ["kvdelta", "reproduce", "trap", *SIZES, "--out", str(out)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = argv
    return stop.value.code, load_run(out / "single-pass"), load_run(out / "two-pass")


def losses(run):
    return {contender.label: run.windows[0].nll[i] / run.windows[0].count for i, contender in enumerate(run.contenders)}


def test_the_trap_shows(trap):
    code, single, two = trap
    assert code == 0
    assert list(losses(two)) == ["exact", *QUANTIZED]
    assert len({losses(single)[label] for label in QUANTIZED}) == 1  # bit for bit
    assert len(set(losses(two).values())) == 6


def test_fewer_bits_cost_more(trap):
    nll = losses(trap[2])
    assert nll["transformers-hqq2"] - nll["exact"] > 10 * abs(nll["transformers-hqq4"] - nll["exact"])
    assert nll["transformers-hqq4"] > nll["transformers-hqq8"]
    kl = dict(zip(nll, trap[2].windows[0].kl, strict=True))
    assert kl["int4"] > 10 * kl["int8"] > 0


def test_single_pass_rows_are_refused_by_the_audit(trap):
    _, single, two = trap
    assert set(single.audit.failures) == set(QUANTIZED)
    assert two.audit.failures == {}
    assert two.audit.identity_is_exact


def test_exact_in_two_passes_is_one_ordinary_forward(trap):
    """Token by token within 2e-5 nats (root mean square) in float32."""
    assert trap[2].noise_floor.routes["single pass"]["rms"] <= 2e-5


def test_coverage_is_that_of_the_sizes(trap):
    """768 packed tokens; 255 queries see 128 of their own on average."""
    window, at = trap[2].windows[0], list(losses(trap[2])).index("int4")
    assert window.key_pairs[at] / window.pairs[at] == pytest.approx(6 / 7, abs=1e-12)
    assert trap[2].contenders[at].quantized_layers == list(range(30))


def test_keys_are_the_outlier_side(tmp_path, monkeypatch, capsys):
    """In every layer a channel of K is over 5 times the median; V stands out less in most."""
    folder = str(tmp_path / "outliers")
    monkeypatch.setattr(sys, "argv", ["kvdelta", "outliers", *SIZES, "--format", "csv", "--out", folder])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    ratio = {}
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        place = row["side"], int(row["layer"])
        ratio[place] = max(ratio.get(place, 0.0), float(row["ratio"]))
    keys, values = ([ratio[side, layer] for layer in range(30)] for side in ("key", "value"))
    assert min(keys) > 5
    assert sum(key > value for key, value in zip(keys, values, strict=True)) > 20


def test_the_second_trap_shows(tmp_path, monkeypatch, capsys):
    """Decoding costs int4 twice and more what two passes say; with its newest tokens exact hardly more."""
    sizes = ["--windows", "3", "--window-length", "256", "--score-length", "64", "--device", "cpu"]
    words = ["--step", "4", "--match-tail", "64", "--scheme", "int4", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["kvdelta", "reproduce", "decoding", *sizes, *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "KL is so many times that of two passes: int4" in capsys.readouterr().out
    runs = [load_run(tmp_path / "run" / name) for name in ("two-pass", "stepwise-4")]
    own, matched = (sum(w.kl[i] for w in runs[1].windows) / sum(w.kl[i] for w in runs[0].windows) for i in (1, 2))
    assert own > 2
    assert matched < 1.3
