"""Files that people name, and the JSON in them: what never ends, or is no file, is refused before it is read."""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

MOST = {
    "map": 2**24,
    "configuration": 2**20,
    "calibration": 2**30,
    "text": 2**31,
    "record": 2**30,
    "journal": 2**32,
    "file of arrays": 2**31,
}
"""Bytes of a file of a kind, far above any that is meant so."""


def read_bytes(path: str | Path, kind: str) -> bytes:
    """All of a file. OSError, which says why in strerror: as `open`; a pipe or a device, which may never end; one that is larger
    than its kind can be."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
    most = MOST[kind]
    try:
        with Path(path).open("rb") as file:
            content = b"" if found.st_size > most else file.read(most + 1)
    except MemoryError:
        raise OSError(errno.ENOMEM, "it is larger than the memory that is left", str(path)) from None
    if max(found.st_size, len(content)) > most:  # some, as those of /proc, say that they are empty
        raise OSError(errno.EFBIG, f"it is larger than a {kind} can be, {most >> 20} MiB", str(path))
    return content


def parse_json(content: bytes | str) -> Any:
    """ValueError for what is no JSON, what is nested deeper than can be read, a name that stands twice in an object, and half a
    character, which no file takes."""
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
    try:
        parsed = json.loads(text, object_pairs_hook=_once)
        if (isinstance(content, str) or "\\u" in text) and _MAY_BE_HALF.search(text):
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except RecursionError:
        raise ValueError("it is nested too deep") from None


_MAY_BE_HALF = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{json.dumps(name)} stands twice in one object")
        found[name] = value
    return found
