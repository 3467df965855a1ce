"""What stands in the page: the figures of the other commands, text that stays text, and nothing that loads."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import sys

import pytest

from kvdelta.analysis.pages import page as pages
from kvdelta.analysis.pages.looks import HUE_NAMES, SHAPES, look_of
from kvdelta.analysis.pages.page import LARGEST, make_page
from kvdelta.analysis.reading import run_tables, summary
from kvdelta.analysis.reading.protocols import protocol_rows
from kvdelta.harness.records.run_folder import load_run, save_run
from kvdelta.schemes import SCHEMES, parse_scheme
from kvdelta.schemes.errors import UserError

from .conftest import HOSTILE, RESULTS, data_of, rows_of


@pytest.mark.parametrize("name", ["demo", "decoding-cpu/stepwise-16"])
def test_rows_are_those_of_show(name):
    run = load_run(RESULTS / name)
    shown = json.loads(run_tables.as_json(run, summary.summarize(run)))["rows"]
    rows = rows_of(data_of(make_page([RESULTS / name], "kvdelta report").decode()))
    assert [{key: row[key] for key in mine} for row, mine in zip(rows, shown, strict=True)] == shown


def test_protocols_are_those_of_show():
    ways = [load_run(RESULTS / "decoding-cpu" / way) for way in ("two-pass", "stepwise-16", "stepwise-1")]
    content = data_of(make_page([RESULTS / "decoding-cpu"], "kvdelta report").decode())
    chart = next(section for section in content["sections"] if section["id"] == "protocols")["charts"][0]["data"]
    marks = [dict(zip(chart["fields"], values, strict=True)) for values in chart["values"]]
    here = {(content["schemes"][mark["s"]]["label"], mark["protocol"]): mark["kl_times"] for mark in marks}
    there = {(row.scheme, row.protocol): row.kl_times for line in protocol_rows(ways) for row in line}
    assert here.keys() == there.keys()
    assert all(there[key] is None or here[key] == pytest.approx(there[key], rel=1e-5) for key in there)


def test_the_answer_is_the_scheme_that_loses_least_within_the_budget():
    content = data_of(make_page([RESULTS / "demo"], "kvdelta report").decode())
    rows = [row for row in rows_of(content) if not row["lossless"]]
    for card in content["glance"]["cards"]:
        within = [row for row in rows if row["bits"] <= float(re.findall(r"[\d.]+", card["budget"])[0]) + 0.005]
        assert card["scheme"] == min(within, key=lambda row: row["kl"])["scheme"]
        assert card["candidates"] == len(within)
    assert "8 windows" in content["glance"]["evidence"]
    assert any("One model" in line for line in content["glance"]["cautions"])
    assert any("Two passes alone" in line for line in content["glance"]["cautions"])


def test_every_window_can_be_had():
    content = data_of(make_page([RESULTS / "demo"], "kvdelta report").decode())
    lines = gzip.decompress(base64.b64decode(content["files"][0]["content"])).decode().splitlines()
    run = load_run(RESULTS / "demo")
    assert len(lines) == 1 + len(run.contenders) * len(run.windows)
    first = min(run.windows, key=lambda window: window.index)
    assert f"{first.nll[0]:.8g}" in lines[1]
    assert f",{first.nll[2] - first.nll[0]:.5g},{first.kl[2]:.5g},{first.top1[2]}" in lines[1 + 2 * len(run.windows)]


def test_what_is_not_there_is_said_with_its_command():
    sections = data_of(make_page([RESULTS / "demo"], "kvdelta report").decode())["sections"]
    assert {"table", "front", "audit", "provenance", "data", "absent"} == {section["id"] for section in sections}
    assert any("`kvdelta replay`" in line for line in sections[-1]["notes"])


def test_names_cannot_end_their_element(hostile):
    assert hostile.count("</script>") == hostile.count("<script") == 3
    assert "<img src=x" not in hostile
    content = data_of(hostile)
    assert {HOSTILE[0], HOSTILE[1]} <= {row["scheme"] for row in rows_of(content)}
    assert "\x1b" not in json.dumps(content, ensure_ascii=False)
    assert "\\x1b" in content["sections"][0]["notes"][0]


def test_only_its_own_scripts_may_run(hostile):
    said = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', hostile)
    scripts = re.findall(r"<script>(.*?)</script>", hostile, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert said
    assert said[1].startswith("default-src 'none'")
    assert re.findall(r"'sha256-(.*?)'", said[1]) == hashes
    assert "unsafe-eval" not in said[1]
    assert not re.findall(r'(?:src|href)="(?!#|data:)', hostile[: hostile.index("<script")])


def test_it_is_small(several, hostile):
    assert len(several.encode()) < LARGEST
    assert len(hostile.encode()) < LARGEST


def test_raw_data_are_left_out_before_the_page_is_too_large(monkeypatch):
    whole = len(make_page([RESULTS / "demo"], "kvdelta report"))
    notes = []
    monkeypatch.setattr(pages, "LARGEST", whole - 1)
    assert len(make_page([RESULTS / "demo"], "kvdelta report", notes.append)) < whole
    assert "Losses by window" in notes[0]
    assert len(make_page([RESULTS / "demo"], "kvdelta report", raw=False)) < whole
    monkeypatch.setattr(pages, "LARGEST", 1000)
    with pytest.raises(UserError, match="give fewer run folders"):
        make_page([RESULTS / "demo"], "kvdelta report")


def changed(tmp_path, **settings):
    """The demo's run again, under other settings."""
    run = load_run(RESULTS / "demo")
    run.settings = run.settings.model_copy(update=settings)
    save_run(run, tmp_path / "other")
    return [RESULTS / "demo", tmp_path / "other"]


BAD = {
    "another text": ({"text_sha256": "0" * 64}, "do not compare: text is wikipedia-excerpt"),
    "another stride": ({"stride": 700}, "do not compare: stride is 512 there and 700 here"),
    "the same": ({}, "leave one of them out"),
    "other measures": ({"model": {"id": "another"}, "measures": 1}, "the measures changed"),
}


@pytest.mark.parametrize("name", BAD)
def test_runs_that_do_not_compare(name, tmp_path):
    settings, message = BAD[name]
    with pytest.raises(UserError, match=message):
        make_page(changed(tmp_path, **settings), "kvdelta report")


def test_other_windows_of_the_same(tmp_path):
    run = load_run(RESULTS / "demo")
    run.windows, run.batches = run.windows[:4], [1] * 4
    run.settings.windows = [window.index for window in run.windows]
    save_run(run, tmp_path)
    with pytest.raises(UserError, match=r"do not compare: windows is 8 \(0, 143, 286, …\) there and 4"):
        make_page([RESULTS / "demo", tmp_path], "kvdelta report")


def test_another_model_is_a_filter(tmp_path):
    content = data_of(make_page(changed(tmp_path, model={"id": "another"}), "kvdelta report").decode())
    assert len(content["runs"]) == 2


def test_a_folder_without_records(tmp_path):
    with pytest.raises(UserError, match=r"holds no record: none of run\.json"):
        make_page([tmp_path], "kvdelta report")


def test_a_single_pass_has_no_place(tmp_path):
    with pytest.raises(UserError, match="single pass, which reads no cache"):
        make_page([RESULTS / "trap-h100" / "single-pass"], "kvdelta report")


@pytest.mark.parametrize("library", ["altair", "vl_convert"])
def test_a_missing_library_is_named_with_the_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library}; pip install 'kvdelta\[report\]'"):
        make_page([RESULTS / "demo"], "kvdelta report")


def test_damage_is_not_shown(tmp_path):
    shutil.copy(RESULTS / "demo" / "run.json", tmp_path)
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    content["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not as it was written"):
        make_page([tmp_path], "kvdelta report")


def test_every_family_has_a_look():
    for name in SCHEMES:
        spec = f"{name}(int4)" if name in WRAPPERS else name
        try:
            look = look_of(parse_scheme(spec).name)
        except (ValueError, FileNotFoundError):  # asks for a file, or for more than its name
            look = look_of(name)
        assert look["hue"] in HUE_NAMES.values()
        assert look["shape"] in SHAPES.values()


WRAPPERS = {"hadamard", "clip", "centred", "sparse", "gear", "unbiased", "matched"}


def test_a_wrapper_has_its_familys_hue_and_is_hollow():
    plain, wrapped = look_of("kivi:bits=2"), look_of("unbiased(kivi:bits=2)")
    assert (plain["hue"], plain["shape"]) == (wrapped["hue"], wrapped["shape"])
    assert (plain["hollow"], wrapped["hollow"]) == (False, True)


def test_models_of_one_last_name_are_two(tmp_path):
    for owner in ("one", "two"):
        run = load_run(RESULTS / "demo").model_copy(deep=True)
        run.model_name, run.settings.model = f"{owner}/tiny", {"kind": "hub", "id": f"{owner}/tiny", "revision": owner}
        save_run(run, tmp_path / owner)
    content = data_of(make_page([tmp_path / "one", tmp_path / "two"], "kvdelta report").decode())
    assert [source["model"] for source in content["sources"]] == ["one/tiny", "two/tiny"]
    assert not any("One model" in line for line in content["glance"]["cautions"])


def test_what_was_done_to_the_weights_is_said():
    content = data_of(make_page([RESULTS / "demo"], "kvdelta report").decode())
    assert "The weights of SmolLM2-135M-Instruct are dequantized from Q4_1." in content["glance"]["cautions"]


def test_records_without_a_panel_are_named(refused):
    with refused("holds tasks.json, of which the page has no panel; kvdelta show"):
        make_page([RESULTS / "tasks-cpu/smollm2"], "kvdelta report")
