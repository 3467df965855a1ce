"""One process writes a run folder at a time. The lock is the system's: it goes with the process that holds it, however that ends."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvdelta.harness.records import held
from kvdelta.harness.records.writing import cannot_write
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

LOCK, WRITER = ".lock", ".writer.json"
OURS = (LOCK, WRITER)
"""What lies in a run folder beside its records. The lock stays: who removes one that another waits for lets two in."""


@contextmanager
def writing(folder: Path, wait: bool, on_note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a folder that exists. UserError, which says who holds it, where another process does; with `wait`, when that has ended."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise UserError(
                    f"{folder} is being written by {_writer(folder)}; give --wait to go on when that has ended, or another "
                    "folder with --out"
                ) from None
            on_note(f"waiting: {folder} is being written by {_writer(folder)}")
            lock.acquire()
    except NotImplementedError:
        on_note(f"the file system of {folder} has no locks: take care that no other process writes there")
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from None
    if folder not in held.FOLDERS:
        held.FOLDERS.append(folder)
    said = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # who holds it is for people; the lock holds without
        (folder / WRITER).write_text(json.dumps(said))
    try:
        yield
    finally:
        (folder / WRITER).unlink(missing_ok=True)
        lock.release()


def holding(until: ExitStack, wait: bool, on_note: Callable[[str], None] = lambda text: None) -> Callable[[Path], None]:
    """As `writing`, until a stack is closed."""
    return lambda folder: until.enter_context(writing(folder, wait, on_note))


def _writer(folder: Path) -> str:
    try:
        said = parse_json(read_bytes(folder / WRITER, "configuration"))
        return f"process {said['process']:d} on {said['host']!s} since {said['since']!s}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
