"""Files that are whole or not there, and one line where they cannot be had."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("place", ["file/below.json", "folder"])
def test_what_cannot_be_written(tmp_path, refused, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with refused("cannot be written to .+; finished windows are kept"):
        write_file(tmp_path / place, b"x")
    assert not list(tmp_path.glob(f"*{UNFINISHED}"))
