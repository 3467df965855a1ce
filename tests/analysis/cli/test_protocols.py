"""Several protocols, matched tails and the second trap, as commands."""

import csv
import io
import json

import pytest

SMALL = ["--windows", "3", "--scheme", "int4:group_size=16", "--scheme", "asym2:group_size=16"]
BOTH = ["--protocol", "two-pass", "--protocol", "stepwise", "--step", "8"]


def test_two_protocols_side_by_side(kvdelta):
    code, out, err = kvdelta("compare", *SMALL, *BOTH, "--out", "run")
    assert code == 0
    assert "3 windows, prefix 96 + suffix 32 tokens, two-pass and stepwise (step 8)" in out
    assert "ΔNLL two-pass" in out
    assert "KL step 8" in out
    assert "the table of each: kvdelta show run/two-pass run/stepwise-8" in err
    code, shown, _ = kvdelta("show", "run")
    assert code == 0
    assert shown.endswith(out)
    assert shown.count("p (Holm)") == 2
    _, text, _ = kvdelta("show", "run", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["protocol"] for row in rows] == ["two-pass", "stepwise (step 8)"] * 2
    _, text, _ = kvdelta("show", "run", "--format", "json")
    assert len(json.loads(text)) == 4
    assert all(50 < row["same"] < 100 and row["kl_999"] > row["kl"] for row in json.loads(text))
    _, text, _ = kvdelta("show", "run", "--format", "md")
    assert text.count("|---|") == 3


def test_two_passes_alone_say_what_they_leave_out(kvdelta):
    _, out, _ = kvdelta("compare", *SMALL)
    assert "decoding costs more" in out
    _, out, _ = kvdelta("compare", *SMALL, "--protocol", "stepwise", "--step", "8")
    assert "decoding costs more" not in out


def test_matched_tails_and_sinks(kvdelta):
    _, out, _ = kvdelta("compare", *SMALL, "--match-tail", "16", "--match-sinks", "4", "--format", "json")
    rows = json.loads(out)["rows"]
    assert [row["scheme"] for row in rows] == ["exact", *SMALL[3::2]]  # as typed
    assert rows[1]["name"] == "matched(symmetric:bits=4,group_size=16):tail=16,sinks=4,block=1"
    assert rows[1]["bits"] == pytest.approx((76 * 5 + 20 * 16) / 96)
    _, out, _ = kvdelta("compare", *SMALL, "--match-tail", "16", "--match-sinks", "4")
    assert "the first 4 and the newest 16 tokens are exact" in out


def test_rows_with_longer_groups_have_no_longer_tail(kvdelta):
    """96 tokens of prefix: 4 sinks and a tail of 16 leave 76, of which 9 groups of 8 leave the tail in every row."""
    words = ["--scheme", "kivi:bits=2,group_size=8,residual_length=32", "--match-tail", "16", "--match-sinks", "4"]
    _, out, _ = kvdelta("compare", *SMALL, *words)
    assert "the first 4 and the newest 20 (16, and 4 that fill no block of 8) tokens are exact" in out
    _, out, _ = kvdelta("compare", *SMALL, *words, "--protocol", "stepwise", "--step", "8")
    assert "the first 4 and the newest 16 to 23 tokens are exact" in out
    _, out, _ = kvdelta("compare", *SMALL, *words, "--format", "json")
    rows = json.loads(out)["rows"][1:]
    assert len(rows) == 3
    assert len({(row["key_coverage"], row["value_coverage"]) for row in rows}) == 1


def test_schemes_that_differ_in_their_tails_alone_are_one_then(kvdelta):
    words = ["--scheme", "int4:group_size=16", "--scheme", "int4:group_size=16,keep_recent=8"]
    _, out, err = kvdelta("compare", "--windows", "2", *words, "--match-tail", "16", "--format", "csv")
    assert "is the same scheme as int4:group_size=16: taken once" in err
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--match-tail", "96"], "a prefix of 96 tokens would leave every key exact"),
        (["--match-tail", "-1"], "greater than or equal to 0"),
        (["--scheme", "sink-window:bits=4", "--match-tail", "8"], "has exact tokens of its own"),
        ([*BOTH, "--baseline", "int4:group_size=16"], "--baseline belongs to the table of one protocol"),
        (["--protocol", "stepwise"], "give --step 16"),
        (["--protocol", "two-pass", "--protocol", "single-pass"], "give --protocol single-pass alone"),
        (["--step", "4"], "belongs to the stepwise protocol"),
        (["--protocol", "twopass"], "choose two-pass, stepwise or single-pass"),
    ],
)
def test_bad_input(kvdelta, words, said):
    code, _, err = kvdelta("compare", *SMALL, *words)
    assert code == 2
    assert said in " ".join(err.split())


def test_the_second_trap(kvdelta, files):
    subject = ["--model", str(files / "model"), "--text", str(files / "text.txt"), "--device", "cpu"]
    sizes = ["--window-length", "128", "--score-length", "32", "--windows", "4"]
    words = ["--scheme", "int2:group_size=16", "--step", "4", "--match-tail", "32", "--out", "run"]
    code, out, _ = kvdelta("reproduce", "decoding", *subject, *sizes, *words)
    assert "int2:group_size=16 (matched)" in out
    _, table, _ = kvdelta("show", "run/two-pass")
    assert "in the rows marked (matched) the newest 32 tokens are exact" in table
    assert "KL step 4" in out
    assert (code, "KL is so many times that of two passes" in out) in [
        (0, True),
        (3, False),
    ]  # random weights may not show it
