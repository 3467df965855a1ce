"""Damage is found and named, and what is damaged is scored again: bits of the files of a run, and figures that were edited."""

import io
import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.harness import comparison, scoring_again
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.comparison import compare
from kvdelta.harness.records import hashes, journal, writing
from kvdelta.harness.records.measurement import has_window, measured_arrays, window_file
from kvdelta.harness.records.record import save_record
from kvdelta.harness.records.run_folder import RUN_FILE, journal_of, load_run, load_whole
from kvdelta.harness.records.verify import verify
from kvdelta.harness.records.writing import UNFINISHED
from kvdelta.harness.runner import Progress
from kvdelta.harness.subject.windows import cut_windows
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError

SPECS = ["int8:group_size=16", "asym2:group_size=16"]
FLIPS = 80


@pytest.fixture
def done(subject, options):
    return compare(SPECS, options, subject=subject)


def file_of(run, position):
    return f"tokens/{run.windows[position].index:06d}.npz"


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def flips(path, seed=0):
    rng = np.random.default_rng(seed)
    size = len(path.read_bytes())
    return [(int(rng.integers(size)), int(rng.integers(8))) for _ in range(FLIPS)]


def says_the_same(content, other):
    """As the e of a number's exponent does when it becomes E."""
    try:
        return json.loads(content) == json.loads(other)
    except ValueError:
        return False


def test_no_flipped_bit_of_the_record_goes_unnoticed(done):
    _, folder = done
    path = folder / RUN_FILE
    whole = path.read_bytes()
    for place, bit in flips(path):
        flip(path, place, bit)
        if says_the_same(path.read_bytes(), whole):
            path.write_bytes(whole)
            continue
        with pytest.raises(UserError) as error:
            load_run(folder)
        assert "\n" not in str(error.value)
        assert [one.damage != [] for one in verify(folder)] == [True]
        path.write_bytes(whole)
    load_run(folder)


def test_no_flipped_bit_of_the_tokens_goes_unnoticed(done):
    run, folder = done
    last, path = run.windows[2].index, folder / file_of(run, 2)
    whole = path.read_bytes()
    for place, bit in flips(path):
        flip(path, place, bit)
        assert [*map(str, load_whole(folder).lost)] == [f"window {last}: tokens/{path.name} is not as it was written"]
        path.write_bytes(whole)
    path.unlink()
    with pytest.raises(UserError, match=f"window {last}: tokens/{path.name} is not there. .* kvdelta verify"):
        load_run(folder)


def header_of(shape, descr="<f4"):
    """What a file of arrays says of one."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def zipped(content, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nll.npy", content)


def place(kind, path):
    """What stands in the place of a file of arrays."""
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "no end":
        path.symlink_to("/dev/zero")
    elif kind == "a claim":
        zipped(header_of((10**13,)) + bytes(100), path)
    elif kind == "a claim that overflows":
        zipped(header_of((2**62, 4)) + bytes(100), path)
    elif kind == "fewer than none":
        zipped(header_of((-1, -25)) + bytes(100), path)
    elif kind == "objects":
        zipped(header_of((1,), "|O") + bytes(8), path)
    elif kind == "no arrays":
        zipped(b"nothing at all", path)
    elif kind == "words":
        np.savez(path, **dict.fromkeys(("nll", "kl", "tvd", "top1"), np.array([["a"] * 31] * 3)))
    elif kind == "one row":
        np.savez(path, **dict.fromkeys(("nll", "kl", "tvd", "top1"), np.zeros(31, dtype=[("a", "f4")])))
    elif kind == "a bomb":
        zipped(header_of((2**20,)) + bytes(2**22), path)


PLACED = {
    "a pipe": "a pipe or a device",
    "no end": "a pipe or a device",
    "a claim": r"says that it is of \(10000000000000,\) numbers of 4 bytes, and is not",
    "a claim that overflows": "says that it is of",
    "fewer than none": "says that it is of",
    "objects": "Object arrays cannot be loaded",
    "no arrays": "magic string is not correct",
    "words": "has no arrays of tokens",
    "one row": "has no arrays of tokens",
    "a bomb": "its arrays are larger than 1 MiB",
}


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.parametrize("hashed", ["with hashes", "without"])
def test_what_is_no_file_of_arrays_is_named(done, monkeypatch, kind, hashed):
    """Without its hash, as an older record has none, it is looked into."""
    run, folder = done
    monkeypatch.setattr(writing, "MOST_UNPACKED", 2**20)
    if hashed == "without":
        run.windows[1].tokens = ""
        save_record(run, folder / RUN_FILE)
    place(kind, folder / file_of(run, 1))
    (lost,) = load_whole(folder).lost
    looked_into = hashed == "without" or kind in ("a pipe", "no end")
    assert re.search(PLACED[kind] if looked_into else "is not as it was written", str(lost))
    assert [one.damage for one in verify(folder)] == [[str(lost)]]


@pytest.mark.parametrize("kind", PLACED)
def test_what_is_no_file_of_measured_arrays_is_named(subject, options, kind, monkeypatch):
    monkeypatch.setattr(writing, "MOST_UNPACKED", 2**20)
    record, folder = measure_errors(SPECS, options, subject)
    window = record.settings.windows[1]
    place(kind, folder / window_file("errors", window))
    assert not has_window(record, folder, window)
    assert [len(one.damage) for one in verify(folder)] == [1]
    with pytest.raises(UserError, match=f"{window:06d}.npz cannot be read: "):
        measured_arrays(folder, record)
    record.files.clear()
    if kind not in ("words", "one row"):
        assert not has_window(record, folder, window)


def test_what_is_no_journal_is_named(subject, options):
    _, _, path = stopped(subject, options, after=2)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"run\.journal cannot be read: .*a pipe or a device"):
        load_run(path.parent)
    assert [len(one.damage) for one in verify(path.parent)] == [1]


def leaves(content, path=()):
    """Every number and word of a record, by where it is."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*path, key))
    else:
        yield path, content


def edited(content, path, value):
    made = json.loads(json.dumps(content))
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def test_no_edited_figure_goes_unnoticed(done):
    _, folder = done
    path = folder / RUN_FILE
    content = json.loads(path.read_text())
    found = [leaf for leaf in leaves(content) if leaf[0] != ("schema_version",)]
    assert len(found) > 250
    for place, value in found:
        if isinstance(value, bool):
            value = not value
        elif isinstance(value, int | float):
            value += 1
        else:
            value = "x"
        path.write_text(json.dumps(edited(content, place, value)))
        with pytest.raises(UserError):
            load_run(folder)
    path.write_text(json.dumps(content))  # in other spacing it is the same record
    load_run(folder)


def test_sums_that_are_not_those_of_the_tokens_are_named(done):
    """Whoever made the hashes too."""
    run, folder = done
    run.windows[1].nll[2] *= 1 + 1e-6
    save_record(run, folder / RUN_FILE)
    assert [*map(str, load_whole(folder).lost)] == [
        f"window {run.windows[1].index}: its sums are not those of {file_of(run, 1)}"
    ]
    run.windows[1].tokens = ""
    run.windows[1].nll[2] /= 1 + 1e-6
    save_record(run, folder / RUN_FILE)
    assert load_run(folder) == run  # within rounding, and an older record has no hash of its file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.windows[0].top1.pop(), "has not a figure for each of its schemes"),
        (lambda run: run.windows[0].pairs.__setitem__(1, -1), "one that cannot be"),
        (lambda run: run.windows[0].top1.__setitem__(1, 99), "one that cannot be"),
        (lambda run: setattr(run.windows[0], "count", 30), "one that cannot be"),
        (lambda run: setattr(run.windows[0], "index", run.windows[2].index), "it has a window twice"),
        (lambda run: setattr(run.windows[0], "index", 999), "that its settings do not name"),
        (lambda run: run.batches.append(1), "its batches are of 4 windows, and there are 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(done, change, said):
    run, folder = done
    change(run)
    save_record(run, folder / RUN_FILE)
    with pytest.raises(UserError, match=f"is not a run record: .*{said}"):
        load_run(folder)


def damage_of(kind, run, folder):
    if kind == "tokens":
        flip(folder / file_of(run, 1), 300, 3)
    elif kind == "a missing file":
        (folder / file_of(run, 1)).unlink()
    else:
        path = folder / RUN_FILE
        content = json.loads(path.read_text())
        content["windows"][1] |= {"the sums": {"nll": [1.0, 2.0, 3.0]}, "the index": {"index": 999}}[kind]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["tokens", "a missing file", "the sums", "the index"])
@pytest.mark.parametrize("batch", ["1", "2"])
def test_the_same_command_scores_a_damaged_window_again(subject, options, kind, batch):
    options = replace(options, batch=batch)
    run, folder = compare(SPECS, options, subject=subject)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "tokens").iterdir()}
    damage_of(kind, run, folder)
    assert len(load_whole(folder).lost) == 1
    notes = []
    again, _ = compare(SPECS, options, subject=subject, progress=Progress(on_note=notes.append))
    assert again == run == load_run(folder)
    assert any("is damaged, and that is scored again: window" in note for note in notes)
    assert not (folder / "again").exists()
    touched = [file_of(run, i) for i in ([1] if batch == "1" else [0, 1])]
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "tokens").iterdir()}
    assert sorted(f"tokens/{name}" for name in now if now[name] != kept.get(name)) == touched


def test_a_damaged_window_of_a_run_that_goes_on(subject, options):
    def stop(windows, contender, label, nll):
        if windows.start == 2:
            raise Stop

    whole, _ = compare(SPECS, replace(options, out=f"{options.out}-whole"), subject=subject)
    with pytest.raises(Stop):
        compare(SPECS, options, subject=subject, progress=Progress(stop))
    folder = Path(options.out)
    flip(folder / file_of(whole, 0), 300, 3)
    run, _ = compare(SPECS, options, subject=subject)
    assert (run.windows, run.audit) == (whole.windows, whole.audit)


def stopped(subject, options, after, **changed):
    """The folder of a run that was stopped after so many windows, and its journal."""

    def stop(windows, contender, label, nll):
        if windows.start == after:
            raise Stop

    windows = cut_windows(subject.tokens, window_length=128, score_length=32, stride=None, windows=8, offset=0)
    subject, options = replace(subject, windows=windows), replace(options, windows=8, **changed)
    with pytest.raises(Stop):
        compare(SPECS, options, subject=subject, progress=Progress(stop))
    return subject, options, journal_of(Path(options.out))


@pytest.mark.parametrize("batch", ["1", "2"])
@pytest.mark.parametrize("lines", [(1,), (2,), (1, 2)])
def test_a_damaged_line_of_the_journal_costs_its_windows_alone(subject, options, batch, lines):
    size = int(batch)
    subject, options, path = stopped(subject, options, after=3 * size, batch=batch)
    whole, _ = compare(SPECS, replace(options, out=f"{options.out}-whole"), subject=subject)
    content = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        content[line - 1] = content[line - 1].replace(b'"nll"', b'"nlm"', 1)
    path.write_bytes(b"".join(content))
    folder = path.parent
    found = load_whole(folder)
    named = f"line{'s 1, 2 are' if len(lines) > 1 else f' {lines[0]} is'} not as written"
    assert [*map(str, found.lost)] == [f"a window: run.journal: {named}"] * (len(lines) * size)
    scored = {window.index: i // size + 1 for i, window in enumerate(subject.windows[: 3 * size])}  # and their lines
    assert [one.index for one in found.run.windows] == [index for index in scored if scored[index] not in lines]
    (said,) = verify(folder)
    assert said.damage == [*map(str, found.lost)]
    assert f"{3 * size} of 8 windows, running" in said.holds
    with pytest.raises(UserError, match=f"is damaged: a window: run.journal: {named}"):
        load_run(folder)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "tokens").iterdir()}
    run, _ = compare(SPECS, options, subject=subject)
    assert (run.windows, run.batches, run.audit, run.contenders) == (
        whole.windows,
        whole.batches,
        whole.audit,
        whole.contenders,
    )
    assert load_run(folder) == run
    for index, line in scored.items():
        path = folder / "tokens" / f"{index:06d}.npz"
        assert (path.stat().st_mtime_ns == kept[path.name]) == (line not in lines)


def test_a_line_that_is_gone_is_missed(subject, options):
    _, _, path = stopped(subject, options, after=3)
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + content[2])
    assert [*map(str, load_whole(path.parent).lost)] == ["a window: run.journal: a line is gone"]


def test_an_older_journal_that_is_damaged_is_named(subject, options):
    """Its lines do not say where they belong."""
    subject, options, path = stopped(subject, options, after=3)
    older = []
    for line in journal.read(path):
        content = json.loads(line)
        del content["before"]
        older.append(json.dumps(content))
    path.unlink()
    for line in older:
        journal.append(path, line)
    assert len(load_run(path.parent).windows) == 3
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + b"0" + content[1] + content[2])
    with pytest.raises(
        UserError, match=r"run\.journal is damaged: line 2 is not as it was written, .*; delete it, and"
    ):
        compare(SPECS, options, subject=subject)


@pytest.mark.parametrize("before", [2, 10**12])
def test_a_line_of_another_run_is_refused(subject, options, before, refused):
    _, _, path = stopped(subject, options, after=2)
    content = json.loads(journal.read(path)[1]) | {"before": before}
    content["windows"][0]["index"] = 999
    journal.append(path, json.dumps(content))
    with refused("is not a run record: .*its settings do not name" if before == 2 else "is of a run that had"):
        load_whole(path.parent)


def test_a_record_whose_head_is_damaged_is_not_gone_on_with(done, subject, options, refused):
    _, folder = done
    content = json.loads((folder / RUN_FILE).read_text())
    content["contenders"][1]["note"] = "lossless, they say"
    (folder / RUN_FILE).write_text(json.dumps(content))
    with refused("is not as it was written: its content has another SHA-256 .* move its folder away"):
        compare(SPECS, options, subject=subject)


def test_a_hash_that_was_hit_costs_its_window_alone(done):
    run, folder = done
    content = json.loads((folder / RUN_FILE).read_text())
    content["windows"][2]["sha256"] = "0" * 64
    (folder / RUN_FILE).write_text(json.dumps(content))
    assert [*map(str, load_whole(folder).lost)] == [f"window {run.windows[2].index}: it is not as it was written"]


def test_records_without_hashes_load(done):
    run, folder = done
    content = hashes.without(json.loads((folder / RUN_FILE).read_text()))
    (folder / RUN_FILE).write_text(json.dumps(content))
    assert load_run(folder) == run
    assert [one.hashed for one in verify(folder)] == [False]


def test_verify_names_all_by_file(done, tmp_path, refused):
    run, folder = done
    shutil.copytree(folder, folder.parent / "copy")
    for i in (0, 2):
        flip(folder / file_of(run, i), 400, 0)
    bad, good = sorted(verify(folder.parent), key=lambda one: not one.damage)
    assert good.damage == []
    assert good.holds == "3 schemes, 3 of 3 windows, complete; sums recomputed from its tokens"
    assert [line.split(":")[0] for line in bad.damage] == [f"window {run.windows[i].index}" for i in (0, 2)]
    (tmp_path / "empty").mkdir()
    with refused("empty holds no record: none of run.json, "):
        list(verify(tmp_path / "empty"))


def cut_tokens(folder):
    shutil.rmtree(folder / "tokens")


def test_a_record_without_its_tokens_is_made_whole_without(subject, options):
    run, folder = compare(SPECS, options, subject=subject)
    cut_tokens(folder)
    damage_of("the sums", run, folder)
    again, _ = compare(SPECS, options, subject=subject)
    assert not (folder / "tokens").exists()
    assert [window.nll for window in again.windows] == [window.nll for window in run.windows]
    assert load_run(folder) == again


def test_batches_are_those_that_there_were(subject, options, monkeypatch):
    """Of a run whose batches were halved; a run of the same settings takes others."""
    asked = []
    run, folder = compare(SPECS, replace(options, batch="3"), subject=subject)
    run.batches, run.batch = [2, 1], 1
    save_record(run, folder / RUN_FILE)
    for i in (0, 2):
        flip(folder / file_of(run, i), 300, 3)
    compare_once = comparison.compare
    monkeypatch.setattr(
        comparison, "compare", lambda *args, **more: asked.append(args[1].batch) or compare_once(*args, **more)
    )
    again, _ = compare(SPECS, replace(options, batch="3"), subject=subject)
    assert (asked, again.batches) == (["2"], [2, 1])  # a last batch may be smaller
    assert again.windows == run.windows


@pytest.mark.parametrize(
    ("batches", "groups"),
    [
        ([3, 3, 1], [[3, 3, 1]]),
        ([3, 3, 1, 3], [[3, 3, 1], [3]]),
        ([4, 2, 2], [[4, 2], [2]]),
        ([1, 2], [[1], [2]]),
        ([], []),
    ],
)
def test_batches_of_one_size_are_one_run(batches, groups):
    made = scoring_again.alike([[0] * size for size in batches])
    assert [[len(batch) for batch in group] for group in made] == groups


class Stop(Exception):
    pass


@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_run_with_a_gap_is_made_whole_in_place(subject, options, place):
    """As a run of several processes has, that was stopped: windows are where they were, and the others are scored afterwards."""
    windows = cut_windows(subject.tokens, window_length=128, score_length=32, stride=None, windows=6, offset=0)
    subject, options = replace(subject, windows=windows), replace(options, windows=6)
    whole, folder = compare(SPECS, options, subject=subject)
    gap = whole.model_copy(deep=True)
    gap.windows, gap.batches, gap.status = [gap.windows[i] for i in (0, 1, 4, 5)], [1] * 4, "running"
    save_record(gap, folder / RUN_FILE)
    flip(folder / f"tokens/{gap.windows[place].index:06d}.npz", 300, 3)
    run, _ = compare(SPECS, options, subject=subject)
    assert sorted(run.windows, key=lambda window: window.index) == whole.windows
    assert load_run(folder) == run


class Faulty(SchemeContender):
    def fill(self, cache, model, batch, prefilled):
        if ARMED:
            raise RuntimeError("out of luck")
        super().fill(cache, model, batch, prefilled)


ARMED = []


def test_a_row_that_fails_only_now_costs_nothing(subject, options, refused):
    """The record stays as it is until the window is scored, or the row is dropped."""
    faulty = Faulty("faulty", parse_scheme(SPECS[0]))
    run, folder = compare([faulty, SPECS[1]], options, subject=subject)
    flip(folder / file_of(run, 1), 300, 3)
    before = (folder / RUN_FILE).read_bytes()
    ARMED.append(True)
    try:
        with refused(
            "faulty failed while a damaged window was scored again: RuntimeError: out of luck; the record is as it was"
        ):
            compare([faulty, SPECS[1]], options, subject=subject)
        assert (folder / RUN_FILE).read_bytes() == before
        dropped, _ = compare([faulty, SPECS[1]], replace(options, drop=["faulty"]), subject=subject)
        assert dropped.contenders[1].error == "dropped where a damaged window was scored again (--drop)"
        assert [window.nll[2] for window in dropped.windows] == [window.nll[2] for window in run.windows]
        assert [np.isfinite(window.nll[1]) for window in dropped.windows] == [True, False, False]
        assert load_run(folder) == dropped
    finally:
        ARMED.clear()
    again, _ = compare([faulty, SPECS[1]], replace(options, retry_failed=True), subject=subject)
    assert again == run == load_run(folder)


@pytest.mark.parametrize("left", ["another run", "half a folder", "a damaged head"])
def test_what_a_stopped_repair_left_is_in_no_ones_way(subject, options, left):
    run, folder = compare(SPECS, options, subject=subject)
    flip(folder / file_of(run, 1), 300, 3)
    there = folder / "again" / "0"
    if left == "half a folder":
        (there / "tokens").mkdir(parents=True)
    else:
        compare(SPECS[:1] if left == "another run" else SPECS, replace(options, out=str(there)), subject=subject)
    if left == "a damaged head":
        (there / RUN_FILE).write_text("{")
    again, _ = compare(SPECS, options, subject=subject)
    assert again == run
    assert not (folder / "again").exists()


def test_a_save_that_was_killed_leaves_a_folder_to_go_on_with(subject, options):
    folder = Path(options.out)
    folder.mkdir()
    (folder / f"{RUN_FILE}.0123456789abcdef{UNFINISHED}").write_text("{")
    run, _ = compare(SPECS, options, subject=subject)
    assert run.status == "complete"


def test_timings_survive_a_repair(subject, options):
    def stop(windows, contender, label, nll):
        if windows.start == 2:
            raise Stop

    with pytest.raises(Stop):
        compare(SPECS, options, subject=subject, progress=Progress(stop))
    folder = Path(options.out)
    flip(folder / file_of(load_run(folder), 0), 300, 3)
    compare(SPECS, options, subject=subject)
    assert len(json.loads((folder / "timings.json").read_text())["seconds"]["prefill"]) == 3
