"""Files that are whole or not there, and one line where they cannot be had."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from kvdelta.harness.records import journal
from kvdelta.harness.records.writing import UNFINISHED, load_arrays, save_arrays, write_file


def test_arrays_come_back(tmp_path):
    saved = {"nll": np.arange(6, dtype=np.float32).reshape(2, 3), "top1": np.array([True, False])}
    save_arrays(tmp_path / "new" / "0.npz", saved)
    loaded = load_arrays(tmp_path / "new" / "0.npz")
    assert loaded.keys() == saved.keys()
    assert all(np.array_equal(loaded[name], saved[name]) and loaded[name].dtype == saved[name].dtype for name in saved)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "changed", "another", "a folder"])
def test_arrays_that_are_not_whole(tmp_path, refused, damage):
    path = tmp_path / "0.npz"
    save_arrays(path, {"nll": np.arange(4000.0)})
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "changed": content[:200] + bytes(100) + content[300:],
        "another": b"no arrays",
    }
    if damage in damaged:
        path.write_bytes(damaged[damage])
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with refused(r"0\.npz cannot be read: .+; give the command of the record again"):
        load_arrays(path)


@pytest.fixture
def synced(monkeypatch):
    """What was told to be on disk, in its order: names of files and folders."""
    fsync, done = os.fsync, []

    def noted(descriptor):
        fsync(descriptor)
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[0])

    monkeypatch.setattr(os, "fsync", noted)
    return done


def test_a_name_is_on_disk_as_its_content_is(tmp_path, synced):
    """And those of the folders that were made for it."""
    write_file(tmp_path / "run" / "tokens" / "0.npz", b"x")
    assert synced == ["run", tmp_path.name, "0", "tokens"]
    synced.clear()
    write_file(tmp_path / "run" / "tokens" / "0.npz", b"y")
    assert synced == ["0", "tokens"]
    synced.clear()
    for _ in range(2):
        journal.append(tmp_path / "run" / "new.journal", "{}")
    assert synced == ["new", "run", "new"]


def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch):
    fsync, refusals = os.fsync, []

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refusals.append(descriptor)
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write_file(tmp_path / "run" / "0.npz", b"x")
    journal.append(tmp_path / "run" / "new.journal", "{}")
    assert (tmp_path / "run" / "0.npz").read_bytes() == b"x"
    assert journal.read(tmp_path / "run" / "new.journal") == ["{}"]
    assert len(refusals) == 3


@pytest.mark.parametrize("place", ["file/below.json", "folder"])
def test_what_cannot_be_written(tmp_path, refused, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with refused("cannot be written to .+; finished windows are kept"):
        write_file(tmp_path / place, b"x")
    assert not list(tmp_path.glob(f"*{UNFINISHED}"))
