"""The bench's commands as their user meets them; what they time is tested with the harness."""

import json

from kvdelta.harness.records.bench import load_bench

KIVI = "kivi:bits=2,group_size=8,residual_length=16"


def pictures(folder):
    return {path.name for path in (folder / "figures").glob("*.png")}


def test_schemes(kvdelta, tmp_path):
    words = ["--scheme", KIVI, "--contexts", "96,64", "--suffix", "16", "--rounds", "2", "--batch", "2", "--out", "run"]
    code, out, err = kvdelta("bench", "schemes", *words)
    assert code == 0
    assert out.splitlines()[:2] == [
        "model",
        "2 windows at once, 2 rounds in turn after a warm-up, float32 on cpu, 1 thread",
    ]
    rows = [line.split()[:2] for line in out.splitlines() if " %" in line]
    assert rows == [row for tokens in ("64", "96") for row in (["exact", tokens], [KIVI, tokens], ["exact", "again"])]
    assert "64 tokens in the cache, 2 windows at once" in err
    assert "record: run, with 4 figures" in err
    record = load_bench(tmp_path / "run")
    assert record.contenders[KIVI] == "kivi:bits=2,group_size=8,residual_length=16"
    assert pictures(tmp_path / "run") == {"cost-by-scheme.png", "cost-by-context.png"}
    code, again, _ = kvdelta("bench", "show", "run", "--format", "json")
    assert code == 0
    assert {row["name"] for row in json.loads(again)} == {"exact", KIVI, "exact again"}


def test_decode(kvdelta, tmp_path):
    code, out, _ = kvdelta("bench", "decode", "--scheme", KIVI, "--contexts", "64", "--steps", "3", "--out", "run")
    assert code == 0
    assert f"{KIVI}, mirrored" in out
    assert "3 steps in turn after a warm-up" in out
    assert [one.name for one in load_bench(tmp_path / "run").held] == ["exact", KIVI, f"{KIVI}, mirrored"]


def test_compare(kvdelta, tmp_path):
    words = ["--scheme", KIVI, "--rounds", "1", "--step", "16", "--windows", "2", "--out", "run"]
    code, out, err = kvdelta("bench", "compare", *words, "--format", "md")
    assert code == 0
    assert "| a window stepwise 16, in windows by two passes |" in out
    assert "2 rows, 1 round of whole windows" in err
    assert not (tmp_path / "run" / "figures").exists()


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(kvdelta):
    for words, message in (
        (["schemes", "--contexts", "12,x"], "--contexts 12,x: give numbers of tokens"),
        (["decode", "--shape", "llama-3.1-8b", "--text", "a.txt"], "--shape takes the place of --model"),
        (["schemes", "--scheme", "kivvi4"], "kivvi4"),
        (["schemes", "--shape", "small"], "no shape 'small'; there is llama-3.1-8b"),
        (["schemes", "--rounds", "0"], "greater than or equal to 1"),
    ):
        code, _, err = kvdelta("bench", *words)
        assert code == 2
        assert message in err
        assert "loaded" not in err
