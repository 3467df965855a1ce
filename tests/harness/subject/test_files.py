"""Files that are whole or not there, the cache's lock, and room on the disk."""

import errno
import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from kvdelta.harness.records.writing import UNFINISHED, write_atomically
from kvdelta.harness.subject import files
from kvdelta.harness.subject.errors import ModelError
from kvdelta.harness.subject.files import cache_folder, needs_space, one_at_a_time


def silent(message: str) -> None:
    pass


class TestWriteAtomically:
    def test_makes_the_folder_and_replaces_what_was_there(self, tmp_path):
        path = tmp_path / "new" / "file"
        for content in (b"one", b"two"):
            write_atomically(path, content)
            assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]

    def test_others_may_read_what_they_could_read_if_it_were_written_plainly(self, tmp_path):
        (tmp_path / "plain").write_bytes(b"")
        write_atomically(tmp_path / "file", b"")
        plain, written = ((tmp_path / name).stat().st_mode for name in ("plain", "file"))
        assert stat.S_IMODE(written) == stat.S_IMODE(plain)

    def test_what_fails_leaves_the_old_content_and_nothing_else(self, tmp_path, monkeypatch):
        def full(file):
            raise OSError(errno.ENOSPC, "No space left on device")

        write_atomically(tmp_path / "file", b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / "file", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"old"

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(OSError, match="file"):
            write_atomically(tmp_path / "file" / "inner", b"")

    def test_leftovers_of_a_killed_process_go_and_nothing_else(self, tmp_path):
        old, fresh, of_the_user = (tmp_path / name for name in ("a" + UNFINISHED, "b" + UNFINISHED, "film.part"))
        for path in (old, fresh, of_the_user):
            path.write_bytes(b"half")
        for path in (old, of_the_user):
            os.utime(path, (time.time() - 3601,) * 2)
        write_atomically(tmp_path / "file", b"")
        assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "file", "film.part"]


class TestCacheFolder:
    def test_is_where_the_variable_says(self, monkeypatch):
        monkeypatch.setenv("KVDELTA_CACHE", "~/some")
        assert cache_folder() == Path.home() / "some"

    @pytest.mark.parametrize("value", [None, ""])
    def test_is_the_users_otherwise(self, monkeypatch, value):
        monkeypatch.delenv("KVDELTA_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("KVDELTA_CACHE", value)
        assert cache_folder().name == "kvdelta"


class TestNeedsSpace:
    def test_refuses_before_anything_is_written(self, tmp_path, free_bytes):
        free_bytes(2_000_000)
        with pytest.raises(ModelError) as error, needs_space(tmp_path, 3_000_000, "a thing"):
            pytest.fail("went on")
        assert str(error.value) == (
            f"no disk space for a thing: 3 MB are needed in {tmp_path}, 2 MB are free; "
            "make room or set KVDELTA_CACHE to a folder on another disk"
        )

    @pytest.mark.parametrize(
        "full",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors' words
        ],
        ids=["disk", "quota", "safetensors"],
    )
    def test_says_the_same_where_the_disk_fills_meanwhile(self, tmp_path, full):
        with pytest.raises(ModelError, match="no disk space for a thing"), needs_space(tmp_path, 0, "a thing"):
            raise full

    @pytest.mark.parametrize("other", [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("other")])
    def test_other_errors_pass(self, tmp_path, other):
        with pytest.raises(type(other)) as error, needs_space(tmp_path, 0, "a thing"):
            raise other
        assert error.value is other


class TestOneAtATime:
    def test_the_second_waits_and_says_so(self, cache):
        messages, order, waits = [], [], threading.Event()

        def says(message):
            messages.append(message)
            waits.set()

        def second():
            with one_at_a_time(says):
                order.append("second")

        thread = threading.Thread(target=second)
        with one_at_a_time(silent):
            thread.start()
            assert waits.wait(60)
            order.append("first")
        thread.join()
        assert order == ["first", "second"]
        assert messages == ["waiting for another kvdelta that is fetching or converting a model"]

    def test_the_work_folder_is_empty_and_goes(self, cache):
        (cache / "work").mkdir(parents=True)
        (cache / "work" / "half").write_bytes(b"")
        with one_at_a_time(silent) as work:
            assert list(work.iterdir()) == []
        assert [path.name for path in cache.iterdir()] == ["lock"]

    def test_a_cache_that_cannot_be_written(self, cache, refused):
        (cache / "lock").mkdir(parents=True)  # opening it fails for everybody, root included
        with refused(r"is not writable \(.*\); set KVDELTA_CACHE to one that is"), one_at_a_time(silent):
            pytest.fail("went on")

    def test_a_cache_that_cannot_be_made(self, cache, refused):
        cache.write_text("not a folder")
        with refused(r"cannot be made \(.*\); set KVDELTA_CACHE"), one_at_a_time(silent):
            pytest.fail("went on")


def test_a_hash_is_remembered_while_the_file_is_as_it_was(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)
    read = []
    digest = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: read.append(path) or digest(path))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    one = hashlib.sha256(b"one").hexdigest()
    assert [files.remembered_sha256(path) for _ in range(3)] == [one] * 3
    assert len(read) == 1
    times = path.stat()
    path.write_bytes(b"two")  # as long, and made to look as old: the time of its inode tells
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files.remembered_sha256(path) == hashlib.sha256(b"two").hexdigest()
    for note in (cache / "hashes").iterdir():
        note.write_text("{")
    assert files.remembered_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_hash_that_cannot_be_remembered_is_made_again(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)
    cache.write_text("a file where the folder would be")
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert files.remembered_sha256(path) == hashlib.sha256(b"one").hexdigest()
