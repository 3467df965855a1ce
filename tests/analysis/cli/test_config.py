"""--config on any command that scores windows; a record's flags given back; --log-json beside it."""

import json

import pytest

SMALL = ["--window-length", "64", "--score-length", "16", "--windows", "2", "--device", "cpu"]


@pytest.fixture
def words(files):
    return ["--model", str(files / "model"), "--text", str(files / "text.txt"), *SMALL]


def flags_of(folder):
    return json.loads((folder / "run.json").read_text())["flags"]


def test_a_file_gives_flags_and_a_flag_wins(kvdelta, files, tmp_path):
    lines = [
        f"model: {files / 'model'}",
        f"text: {files / 'text.txt'}",
        "window-length: 64",
        "score_length: 16",
        "windows: 2",
    ]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "device: cpu", "scheme: [int4:group_size=16]", "out: a"]))
    code, out, err = kvdelta("compare", "--config", "run.yaml", "--windows", "3")
    assert code == 0, err
    assert "3 windows" in out
    assert "int4:group_size=16" in out
    kept = flags_of(tmp_path / "a")
    assert (kept["windows"], kept["score_length"], kept["scheme"]) == (3, 16, ["int4:group_size=16"])
    assert kept["window_length"] == 64
    assert "out" not in kept


def test_the_flags_of_a_record_make_the_same_run(kvdelta, words, tmp_path):
    """Defaults, repeated flags and "all" included; the new record differs in nothing that decides its numbers."""
    given = [*words, "--scheme", "int4:group_size=16", "--scheme", "asym2:group_size=16", "--match-tail", "4"]
    given += ["--protocol", "two-pass", "--protocol", "stepwise", "--step", "8"]
    assert kvdelta("compare", *given, "--out", "a")[0] == 0
    code, _, err = kvdelta("compare", "--config", "a/stepwise-8", "--out", "b")
    assert code == 0, err
    for part in ("two-pass", "stepwise-8"):
        one, two = (json.loads((tmp_path / folder / part / "run.json").read_text()) for folder in "ab")
        assert one["settings"] == two["settings"]
        assert one["flags"] == two["flags"]
        assert [window["nll"] for window in one["windows"]] == [window["nll"] for window in two["windows"]]


def test_all_windows_stay_all(kvdelta, files, tmp_path):
    words = [
        "--model",
        str(files / "model"),
        "--text",
        str(files / "text.txt"),
        "--device",
        "cpu",
        "--scheme",
        "int8:group_size=16",
    ]
    long = ["--window-length", "256", "--score-length", "64", "--windows", "all"]
    assert kvdelta("compare", *words, *long, "--out", "a")[0] == 0
    assert flags_of(tmp_path / "a")["windows"] == "all"
    assert kvdelta("compare", "--config", "a", "--out", "b")[0] == 0
    read = [len(json.loads((tmp_path / folder / "run.json").read_text())["windows"]) for folder in "ab"]
    assert read[0] == read[1] > 8


def test_a_record_of_another_command_says_which_flag_it_lacks(kvdelta, words):
    assert kvdelta("compare", *words, "--scheme", "int8:group_size=16", "--match-tail", "4", "--out", "a")[0] == 0
    code, out, err = kvdelta("outliers", "--config", "a")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "which is no flag of this command" in err


def test_a_folder_without_flags_is_one_line(kvdelta, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = kvdelta("compare", "--config", "empty")
    assert (code, out) == (2, "")
    assert "--config empty: no record there keeps its flags" in err
    assert len(err.splitlines()) == 1


def events_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_says_what_happens(kvdelta, words, tmp_path):
    schemes = ["--scheme", "int8:group_size=16", "--scheme", "int4:group_size=16"]
    assert kvdelta("compare", *words, *schemes, "--log-json", "log.jsonl", "--out", "a")[0] == 0
    events = events_of(tmp_path / "log.jsonl")
    assert events[0]["event"] == "begin"
    assert events[-1] == {"time": events[-1]["time"], "seconds": events[-1]["seconds"], "event": "end", "code": 0}
    assert events[0]["flags"]["scheme"] == ["int8:group_size=16", "int4:group_size=16"]
    scored = [event for event in events if event["event"] == "scored"]
    assert len(scored) == 2 * 3  # windows × (exact, int8, int4)
    assert {event["of"] for event in scored} == {2}
    rows = {event["scheme"]: event for event in events if event["event"] == "row"}
    table = {row["scheme"]: row for row in json.loads(kvdelta("show", "a", "--format", "json")[1])["rows"]}
    assert set(rows) == set(table) == {"exact", "int8:group_size=16", "int4:group_size=16"}
    assert all(rows[name]["delta_nll"] == table[name]["delta_nll"] for name in table)
    times = [event["seconds"] for event in events]
    assert times == sorted(times)


def test_a_log_that_cannot_be_written_is_one_line(kvdelta, words):
    code, out, err = kvdelta("compare", *words, "--log-json", "gone/log.jsonl")
    assert (code, out) == (2, "")
    assert "--log-json gone/log.jsonl cannot be written: No such file or directory" in err
