"""Files that are whole or not there: records, arrays, figures."""

import errno
import io
import math
import os
import secrets
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvdelta.harness.records import hashes
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import read_bytes

MOST_UNPACKED = 2**32
"""Bytes of all arrays in a file, far above any that is meant so: a file of them can be a thousand times smaller."""
UNFINISHED = ".kvdelta-part"  # of files that are being written; no user names a file so, whatever folder it lies in


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, and its folder, so that readers see all of it or nothing, after a power cut too; OSError where it cannot be written."""
    make_folder(path.parent)
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
    sync_names(path.parent)


def make_folder(folder: Path) -> None:
    """And those above it; OSError where one cannot be made."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_names(one.parent)


def sync_names(folder: Path) -> None:
    """Names that were made or replaced in a folder outlive a power cut from here on: a file's own fsync promises its content alone. Where the
    file system, or the system, does not do this, they are as safe as it makes them."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
        content = read_bytes(path, "file of arrays")
        if sha256 and hashes.of_bytes(content) != sha256:
            raise ValueError("it is not as it was written")
        return arrays_of(content)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path} cannot be read: {reason}; give the command of the record again") from None


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """Of an npz file; ValueError where it is none, not whole, or larger than it can be, unpacked."""
    arrays, left = dict[str, np.ndarray](), MOST_UNPACKED
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                left -= _checked_size(archive, member)
                if left < 0:
                    raise ValueError(f"its arrays are larger than {MOST_UNPACKED >> 20} MiB")
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError:
        raise ValueError("its arrays are larger than the memory that is left") from None
    except Exception as error:  # zipfile, zlib and numpy, which parses a header as Python, raise dozens of kinds
        raise ValueError(str(error)) from None
    return arrays


def _checked_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array, from its header: before memory is taken for it. ValueError where its file has not as many."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - file.tell():
            raise ValueError(
                f"{member.filename} says that it is of {shape} numbers of {dtype.itemsize} bytes, and is not"
            )
    return size
