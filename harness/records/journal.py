"""A file that is added to while a run goes: a line an entry, each with its checksum, on disk before `append` returns.

A line is the CRC-32 of its JSON, eight hexadecimal digits, and the JSON. A process that is killed, or a disk that fills, can leave the
end torn, which is how such a file ends. A line that is not whole with whole ones behind it is another thing: it was damaged since.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path

from kvdelta.harness.records.writing import cannot_write, sync_names
from kvdelta.schemes.given import read_bytes


def append(path: Path, content: str) -> None:
    """UserError, and the entries as they were, where the disk is full or the folder cannot be written."""
    line = content.encode()
    before = size(path)
    try:
        before = _without_torn(path, before)
        with path.open("ab") as file:
            file.write(b"%08x %b\n" % (zlib.crc32(line), line))
            file.flush()
            os.fsync(file.fileno())
        if not before:
            sync_names(path.parent)
    except OSError as error:
        with suppress(OSError):
            cut(path, before)
        raise cannot_write(path, error) from None


def _without_torn(path: Path, before: int) -> int:
    """The size without a last line that was not finished, which is cut: what is appended would stand on it, and be lost with it."""
    if not before:
        return 0
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return before
    whole = read_bytes(path, "journal").rfind(b"\n") + 1
    cut(path, whole)
    return whole


def read(path: Path) -> list[str | None]:
    """An entry a line, None for one that was damaged: that is not whole, and has whole ones behind it. None at all where there is no
    file. OSError for what is none."""
    try:
        # behind the last newline stands nothing, or what was not finished
        lines = read_bytes(path, "journal").split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    entries = [_entry(line) for line in lines]
    while entries and entries[-1] is None:
        entries.pop()
    return entries


def _entry(line: bytes) -> str | None:
    checksum, _, content = line.partition(b" ")
    return content.decode() if checksum == b"%08x" % zlib.crc32(content) else None


def size(path: Path) -> int:
    """In bytes; 0 where there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def cut(path: Path, to: int) -> None:
    """Take back what was appended since it had this size."""
    if size(path) > to:
        os.truncate(path, to)
