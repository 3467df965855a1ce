"""Files that are whole or not there: records, arrays, figures."""

import errno
import io
import os
import secrets
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvdelta.harness.records import hashes
from kvdelta.schemes.errors import UserError

UNFINISHED = ".kvdelta-part"  # of files that are being written; no user names a file so, whatever folder it lies in


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, and its folder, so that readers see all of it or nothing; OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _cleaned:
        _cleaned.add(path.parent)
        _clean(path.parent)
    # not tempfile's: that would be readable by its owner alone, and records are for others too
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Before the work whose result goes there. UserError, with --out as the way out, where no file of this name can be written."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise UserError(
            f"the file {path.name} cannot be written to {path.parent}: {error.strerror}; choose another with --out"
        ) from None


_cleaned: set[Path] = set()  # by this process


def _clean(folder: Path) -> None:
    """Of what a process that was killed while writing left an hour ago or earlier."""
    for stale in folder.glob(f"*{UNFINISHED}"):
        with suppress(FileNotFoundError):  # another process cleans, or finishes, at the same time
            if stale.stat().st_mtime < time.time() - 3600:
                stale.unlink()


def write_file(path: Path, content: bytes) -> None:
    """All of it or nothing; UserError where the disk is full or the folder cannot be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path.name} cannot be written to {path.parent}: {error.strerror}; finished windows are kept: free some "
        "space and give the same command again, or choose another folder with --out"
    )


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Compressed; the SHA-256 of the file."""
    content = packed_arrays(arrays)
    write_file(path, content)
    return hashes.of_bytes(content)


def packed_arrays(arrays: dict[str, np.ndarray], *, compressed: bool = True) -> bytes:
    """An npz file."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_arrays(path: Path, sha256: str = "") -> dict[str, np.ndarray]:
    """UserError where the file is not there, not whole, or another than the one with this hash; empty: whatever it has."""
    try:
        content = path.read_bytes()
        if sha256 and hashes.of_bytes(content) != sha256:
            raise ValueError("it is not as it was written")
        return arrays_of(content)
    except (OSError, ValueError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path} cannot be read: {reason}; give the command of the record again") from None


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """Of an npz file; ValueError or EOFError where it is none, or not whole."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(str(error)) from None
