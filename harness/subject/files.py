"""The cache folder: where it is, who writes it at a time, and that there is room."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from kvdelta.harness.subject.errors import ModelError

Progress = Callable[[str], None]

LARGE = 10_000_000  # bytes of a file whose hash is worth remembering


def cache_folder() -> Path:
    """Where fetched and converted things lie: KVDELTA_CACHE, else the user's cache folder."""
    return Path(os.environ.get("KVDELTA_CACHE") or platformdirs.user_cache_dir("kvdelta")).expanduser()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The SHA-256 of a file; of one that is large, as it was when a file of this path, size and time of change was last
    read: hashing weights at every start takes longer than loading them."""
    path = path.resolve()
    facts = path.stat()
    if facts.st_size < LARGE:
        return file_sha256(path)
    seen = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    note = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(note.read_text())
        if known["seen"] == seen:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole: it is made again
    sha256 = file_sha256(path)
    with suppress(OSError):  # a cache folder that cannot be written costs only time
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{note.name}.{os.getpid()}")
        part.write_text(json.dumps({"seen": seen, "sha256": sha256}))
        os.replace(part, note)
    return sha256


def _full(folder: Path, needed: int, what: str) -> ModelError:
    free = shutil.disk_usage(folder).free
    return ModelError(
        f"no disk space for {what}: {needed / 1e6:.0f} MB are needed in {folder}, {free / 1e6:.0f} MB are free; "
        "make room or set KVDELTA_CACHE to a folder on another disk"
    )


@contextmanager
def needs_space(folder: Path, needed: int, what: str) -> Iterator[None]:
    """Refuse before writing `needed` bytes where they do not fit, and say the same where the disk fills meanwhile."""
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, needed, what)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(folder, needed, what) from error
    except Exception as error:  # safetensors reports a full disk in an error class of its own
        if "No space left" not in str(error):
            raise
        raise _full(folder, needed, what) from error


@contextmanager
def one_at_a_time(progress: Progress) -> Iterator[Path]:
    """Hold the cache's lock; what an interrupted process left in the work folder goes first. Yields the work folder."""
    from filelock import FileLock, Timeout

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set KVDELTA_CACHE to a folder you can write"
        ) from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another kvdelta that is fetching or converting a model")
        lock.acquire()
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} is not writable ({error.strerror}); set KVDELTA_CACHE to one that is"
        ) from error
    work = folder / "work"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} cannot be used ({error.strerror or error}); set KVDELTA_CACHE to one that can"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
