"""What is appended stays, what is torn is left out, and nothing else changes."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdelta.harness.records import journal
from kvdelta.schemes.errors import UserError

ENTRIES = ['{"a": 1}', '{"b": "ä ☃"}', "{}"]


@pytest.fixture
def path(tmp_path):
    for entry in ENTRIES:
        journal.append(tmp_path / "run.journal", entry)
    return tmp_path / "run.journal"


def test_what_was_appended_is_read(path):
    assert journal.read(path) == ENTRIES
    assert journal.read(path.with_name("none")) == []


def test_a_file_that_ends_anywhere_has_the_entries_that_are_whole(path):
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for at in range(len(content) + 1):
        path.write_bytes(content[:at])
        assert journal.read(path) == ENTRIES[: sum(end <= at for end in ends)]


@given(st.data())
def test_no_flipped_bit_is_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "run.journal"
    for entry in ENTRIES:
        journal.append(path, entry)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    read = journal.read(path)
    whole = [entry for entry in read if entry is not None]
    assert whole == [entry for entry in ENTRIES if entry in whole] != ENTRIES
    assert read[-1:] != [None]


def test_damage_is_told_from_a_torn_end(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"x" + lines[1] + lines[2])
    assert journal.read(path) == [ENTRIES[0], None, ENTRIES[2]]
    path.write_bytes(lines[0] + b"x" + lines[1])
    assert journal.read(path) == ENTRIES[:1]


def test_a_journal_that_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "run.journal")
    with pytest.raises(OSError, match="a pipe or a device"):
        journal.read(tmp_path / "run.journal")


def test_a_full_disk_leaves_the_journal_as_it_was(path, monkeypatch):
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"run\.journal cannot be written .* No space left on device; finished windows"
        ):
            journal.append(path, "{}")
    assert path.read_bytes() == before
    journal.append(path, "{}")
    assert journal.read(path) == [*ENTRIES, "{}"]


def test_what_was_appended_is_taken_back(path):
    size = journal.size(path)
    journal.append(path, "{}")
    journal.cut(path, size)
    assert journal.read(path) == ENTRIES
    assert journal.size(path.with_name("none")) == 0
