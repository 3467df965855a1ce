"""The journal against a model, under every fault: a torn tail of any length, blocks that were never written, flipped bits, a full
disk, entries taken back.

Law: reading gives the entries whose line is as it was appended, all of them and no other, and says where between them, or before them,
something was lost; what is appended behind a torn line is read again. The checksum is a CRC-32: it finds every single flipped bit, and
of arbitrary damage to a line all but one case in 2³²; lines that are missing as a whole the journal of a run sees, this file does not.
"""

import os
import zlib
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvdelta.harness.records import journal
from kvdelta.schemes.errors import UserError


class Written(NamedTuple):
    """An entry, and where its line lies."""

    start: int
    end: int
    text: str


class JournalMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = JournalMachine.folder / "run.journal"
        self.path.unlink(missing_ok=True)
        self.written: list[Written] = []
        self.ideal = b""  # what the file would hold without flipped bits and lost blocks
        self.marks: list[int] = []

    def actual(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def cut_to(self, size: int) -> None:
        """The model's part of it."""
        self.written = [one for one in self.written if one.end <= size]
        self.ideal = self.ideal[:size]
        self.marks = [mark for mark in self.marks if mark <= size]

    def expected(self) -> list[str | None]:
        """None for any number of lines that were damaged."""
        actual, at, entries = self.actual(), 0, list[str | None]()
        for one in self.written:
            begins = one.start == 0 or actual[one.start - 1 : one.start] == b"\n"
            if begins and actual[one.start : one.end] == self.ideal[one.start : one.end]:
                entries += [one.text] if one.start == at else [None, one.text]
                at = one.end
        return entries

    def read(self) -> list[str | None]:
        """The same of the file."""
        read = journal.read(self.path)
        return [
            entry for before, entry in zip(["", *read], read, strict=False) if entry is not None or before is not None
        ]

    @rule(text=st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=40))
    def append(self, text):
        whole = self.actual()[: self.actual().rfind(b"\n") + 1]  # a torn line goes, the rest stays
        self.cut_to(len(whole))
        undamaged = whole == self.ideal
        journal.append(self.path, text)
        self.ideal += b"%08x %b\n" % (zlib.crc32(text.encode()), text.encode())
        self.written.append(Written(len(whole), len(self.ideal), text))
        if undamaged:
            assert journal.read(self.path) == [one.text for one in self.written]
        assert journal.read(self.path)[-1] == text

    @rule(text=st.text("ab", max_size=5))
    def append_to_a_full_disk(self, text):
        before = journal.read(self.path)
        full = mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device"))
        with full, pytest.raises(UserError, match="No space left on device"):
            journal.append(self.path, text)
        assert journal.read(self.path) == before
        self.cut_to(self.actual().rfind(b"\n") + 1)

    @precondition(lambda self: self.actual())
    @rule(share=st.floats(0, 1))
    def tear(self, share):
        """As a kill in the middle of a write leaves it: the file ends anywhere."""
        size = round(share * len(self.actual()))
        os.truncate(self.path, size)
        self.cut_to(size)

    @precondition(lambda self: self.actual())
    @rule(lost=st.integers(1, 30))
    def lose_blocks(self, lost):
        """As a power cut may leave it: as long as it was, with zeros for what was not written."""
        content = self.actual()
        lost = min(lost, len(content))
        self.path.write_bytes(content[:-lost] + bytes(lost))

    @precondition(lambda self: self.actual())
    @rule(place=st.integers(0, 2**16))
    def flip(self, place):
        content = bytearray(self.actual())
        place %= 8 * len(content)
        content[place // 8] ^= 1 << place % 8
        self.path.write_bytes(content)

    @rule()
    def mark(self):
        self.marks.append(journal.size(self.path))

    @precondition(lambda self: self.marks)
    @rule()
    def go_back(self):
        """As a batch that is begun again takes back what it added."""
        size = self.marks.pop()
        journal.cut(self.path, size)
        self.cut_to(size)

    @invariant()
    def reading_gives_what_is_whole_and_where_it_is_not(self):
        assert self.read() == self.expected()
        assert journal.size(self.path) == len(self.actual())


def test_any_faults_between_any_appends(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "fsync", lambda file: None
    )  # what a disk does with it cannot be seen here, and takes its time
    JournalMachine.folder = tmp_path
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(max_examples=200, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]),
    )


@pytest.mark.parametrize("torn", range(1, 13))
def test_what_is_appended_behind_a_torn_line_is_read(tmp_path, torn):
    path = tmp_path / "run.journal"
    for entry in ("{}", '{"a": 1}'):
        journal.append(path, entry)
    os.truncate(path, journal.size(path) - torn)
    journal.append(path, '{"b": 2}')
    journal.append(path, '{"c": 3}')
    assert journal.read(path) == ["{}", '{"b": 2}', '{"c": 3}']
