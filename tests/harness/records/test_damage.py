"""Damage is found and named, and what is damaged is scored again: bits of the files of a run, and figures that were edited."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.comparison import compare
from harness.records import hashes
from harness.records.record import save_record
from harness.records.run_folder import RUN_FILE, load_run, load_whole
from harness.records.verify import verify
from harness.runner import Progress
from schemes.errors import UserError

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


def test_no_flipped_bit_of_the_record_goes_unnoticed(done):
    _, folder = done
    path = folder / RUN_FILE
    whole = path.read_bytes()
    for place, bit in flips(path):
        flip(path, place, bit)
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
        assert load_whole(folder).lost == [f"window {last}: tokens/{path.name} is not as it was written"]
        path.write_bytes(whole)
    path.unlink()
    with pytest.raises(UserError, match=f"window {last}: tokens/{path.name} is not there. .* kvdelta verify"):
        load_run(folder)


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
    for place, value in found[:: len(found) // 150]:
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
    assert load_whole(folder).lost == [f"window {run.windows[1].index}: its sums are not those of {file_of(run, 1)}"]
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
    class Stop(Exception):
        pass

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


def test_a_record_whose_head_is_damaged_is_not_gone_on_with(done, subject, options, refused):
    _, folder = done
    content = json.loads((folder / RUN_FILE).read_text())
    content["contenders"][1]["note"] = "lossless, they say"
    (folder / RUN_FILE).write_text(json.dumps(content))
    with refused("is not as it was written: its content has another SHA-256 .* move it away"):
        compare(SPECS, options, subject=subject)


def test_a_hash_that_was_hit_costs_its_window_alone(done):
    run, folder = done
    content = json.loads((folder / RUN_FILE).read_text())
    content["windows"][2]["sha256"] = "0" * 64
    (folder / RUN_FILE).write_text(json.dumps(content))
    assert load_whole(folder).lost == [f"window {run.windows[2].index} is not as it was written"]


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
