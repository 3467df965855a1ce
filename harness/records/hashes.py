"""What a record says of its own content: the SHA-256 of each window, and of all the rest, so that damage is found and named.

A hash is of JSON with sorted keys and without spaces, in which `sha256` itself is left out; the record's own has, in the place of its
windows, their hashes. Records from before the hashes have none, and are taken as they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvdelta.schemes.given import read_bytes

HASH = "sha256"


def of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hashed(content: dict[str, Any]) -> dict[str, Any]:
    """A record's content with its hashes."""
    content = dict(content)
    if windows := content.get("windows"):
        content["windows"] = [{**window, HASH: _of(window)} for window in windows]
    return {**content, HASH: _of_record(content, [window[HASH] for window in content.get("windows", [])])}


def without(content: dict[str, Any]) -> dict[str, Any]:
    """A record's content alone."""
    windows = content.get("windows")
    plain = {"windows": [_rest(window) for window in windows]} if isinstance(windows, list) else {}
    return {**_rest(content), **plain}


def damaged(content: dict[str, Any]) -> tuple[bool, list[int]]:
    """Whether a record's content is not what was written, its windows left out; and the positions of those windows that are
    not."""
    if not content.get(HASH):
        return False, []
    windows: list[Any] = content["windows"] if isinstance(content.get("windows"), list) else []
    said = [window.get(HASH) if isinstance(window, dict) else None for window in windows]
    found = [_of(window) if isinstance(window, dict) else None for window in windows]
    wrong = [i for i, (one, other) in enumerate(zip(said, found, strict=True)) if one != other]
    # of a window whose hash was hit, and nothing else, the record's own hash knows what it was
    return content[HASH] not in (_of_record(content, said), _of_record(content, found)), wrong


def damaged_files(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Of files and their hashes those that are not as they were written, and why."""
    wrong = {}
    for name, sha256 in files.items():
        try:
            if of_bytes(read_bytes(folder / name, "file of arrays")) != sha256:
                wrong[name] = "it is not as it was written"
        except OSError as error:
            wrong[name] = (
                "it is not there" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error.strerror}"
            )
    return wrong


def _rest(content: Any) -> Any:
    return {name: value for name, value in content.items() if name != HASH} if isinstance(content, dict) else content


def _of(content: dict[str, Any]) -> str:
    return of_bytes(json.dumps(_rest(content), sort_keys=True, separators=(",", ":")).encode())


def _of_record(content: dict[str, Any], windows: Sequence[str | None]) -> str:
    return _of({**content, "windows": list(windows)} if "windows" in content else content)
