"""`kvdelta report` on the command line."""

from pathlib import Path

RESULTS = Path(__file__).parents[3] / "results"


def test_a_page_is_written(kvdelta, tmp_path):
    code, out, err = kvdelta("report", str(RESULTS / "demo"), "--out", "some/page.html")
    assert (code, out) == (0, "")
    assert "report: some/page.html (1." in err or "report: some/page.html (0." in err
    assert (tmp_path / "some" / "page.html").read_text().startswith("<!doctype html>")


def test_without_the_windows(kvdelta, tmp_path):
    assert kvdelta("report", str(RESULTS / "demo"), "--no-raw")[0] == 0
    assert "Left out, as asked for" in (tmp_path / "report.html").read_text()


def test_bad_input(kvdelta, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in {
        ("empty",): "empty holds no record: none of run.json",
        ("gone",): "there is no folder gone",
        (str(RESULTS / "demo"), "--out", "empty"): "--out empty is a folder",
        (str(RESULTS / "demo"), "--out", "/proc/page.html"): "page.html cannot be written to /proc",
        (str(RESULTS / "demo"), str(RESULTS / "wikitext2-cpu")): "do not compare: text is wikipedia-excerpt",
        (str(RESULTS / "trap-h100"),): "single pass, which reads no cache",
    }.items():
        code, out, err = kvdelta("report", *words)
        assert (code, out) == (2, ""), words
        assert message in err
        assert err.strip().count("\n") == 0, err
