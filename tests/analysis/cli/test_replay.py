"""`kvdelta replay` as its user meets it."""

import csv
import io
import json
import sys

import pytest

from kvdelta.analysis.cli import main as cli
from kvdelta.harness.records.replay import load_replay

SCHEMES = ["--scheme", "asym2:group_size=16", "--scheme", "int8:group_size=16"]
SIZES = ["--prompt-count", "3", "--prompt-length", "40", "--tokens", "24"]


@pytest.fixture
def replayed(kvdelta, files):
    words = (files / "text.txt").read_text().split()
    text = files / "paragraphs.txt"
    text.write_text("\n\n".join(" ".join(words[i : i + 20]) for i in range(0, len(words), 20)))
    subject = ["--model", str(files / "model"), "--prompts", str(text), "--device", "cpu"]
    return kvdelta("replay", *subject, *SCHEMES, *SIZES, "--free-run", "--out", "run")


def test_a_replay_is_shown_and_drawn_again_from_its_record(kvdelta, replayed, tmp_path):
    code, out, _ = replayed
    assert code == 0
    assert "3 prompts of 40 tokens, 24 tokens scored after each, 1 token a forward" in out
    assert "sampled at temperature 1" in out
    assert "22–24" in out
    assert "own text: length" in out
    drawn = tmp_path / "run" / "figures" / "replay.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    for protocol in ("stepwise", "two-pass"):  # a record is kept without them
        for path in (tmp_path / "run" / protocol / "tokens").iterdir():
            path.unlink()
    drawn.unlink()
    assert kvdelta("show", "run") == (0, out, "")
    assert kvdelta("plot", "run")[0] == 0
    assert drawn.exists()
    assert "| scheme |" in kvdelta("show", "run", "--format", "md")[1]
    rows = list(csv.DictReader(io.StringIO(kvdelta("show", "run", "--format", "csv")[1])))
    assert json.loads(kvdelta("show", "run", "--format", "json")[1])[1]["scheme"] == rows[1]["scheme"]
    asym = [row for row in rows if row["scheme"] == SCHEMES[1]]
    assert [(row["first"], row["last"]) for row in asym[:3]] == [("1", "24"), ("1", "3"), ("4", "6")]
    assert float(asym[0]["times_low"]) < float(asym[0]["times"]) < float(asym[0]["times_high"])
    assert float(asym[0]["kl_999"]) > float(asym[0]["kl"])
    low, at, high = (int(asym[0][name]) for name in ("departs_low", "departs", "departs_high"))
    assert low <= at <= high
    assert f"{at} [{low}, {high if high <= 24 else '>24'}]" in out
    table = out[out.index("KL by tokens written") :]
    assert f"{float(asym[1]['kl']):.2g} ±{100 * (float(asym[1]['kl_high']) / float(asym[1]['kl']) - 1):.0f}%" in table
    whole, *bins = (float(row["kl"]) for row in asym)
    assert whole == pytest.approx(sum(bins) / 8)
    assert float(asym[0]["kl_low"]) < whole < float(asym[0]["kl_high"])


def test_the_same_exact_tokens_and_another_replays_text(kvdelta, replayed, files, tmp_path):
    """What is matched is said above the table, and changes the scores of the same text."""
    words = ["--model", str(files / "model"), "--prompts", str(files / "paragraphs.txt"), "--device", "cpu", *SIZES]
    matched = ["--scheme", SCHEMES[1], "--match-tail", "16", "--match-sinks", "4", "--sampled", "run"]
    code, out, err = kvdelta("replay", *words, *matched, "--out", "more")
    assert code == 0, err
    assert "the exact model writes" not in err
    assert "in every scheme the first 4 and the newest 16 tokens are exact" in out
    (_, own, _), (_, equal) = (load_replay(tmp_path / name).rows for name in ("run", "more"))
    assert equal.name == "matched(asymmetric:bits=2,group_size=16):tail=16,sinks=4,block=1"
    assert sum(map(sum, equal.kl)) < sum(map(sum, own.kl))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--tokens", "0"], "0 tokens after each prompt"), (["--scheme", "kiwi2"], "kiwi2")],
)
def test_bad_input_ends_before_anything_is_loaded(kvdelta, words, message):
    code, out, err = kvdelta("replay", "--model", "gone", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.real_model
def test_the_packaged_model(tmp_path, monkeypatch, capsys):
    """A second trap: over its own text int4 loses several times what one forward shows."""
    words = ["--scheme", "int4", "--prompt-count", "2", "--prompt-length", "64", "--tokens", "24", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["kvdelta", "replay", *words, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    row = load_replay(tmp_path / "run").rows[1]
    kl, once = (sum(map(sum, sums)) for sums in (row.kl, row.one_forward_kl))
    assert kl > once > 0
