"""Files of calibrated schemes: tensors in safetensors, and beside them, as JSON, what they were made of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes
from kvdelta.schemes.references import digest_of, reference, split_reference

HASH = "sha256"


@dataclass(frozen=True, init=False)
class CalibrationFile:
    """A calibration as a spec names it, PATH or PATH#HASH. Equal content is equal, wherever it lies.

    UserError where the file, or its JSON, cannot be read, or has another hash than the one given.
    """

    path: str = field(compare=False)
    digest: str

    def __init__(self, text: str):
        path, expected = split_reference(text)
        object.__setattr__(self, "path", path)
        object.__setattr__(
            self, "digest", digest_of(*_contents(path), expected=expected, what=f"the calibration {path!r}")
        )

    def __str__(self) -> str:
        return reference(self.path, self.digest)


def _contents(path: str) -> tuple[bytes, bytes]:
    """Of the file of tensors, and of its JSON."""
    try:
        return read_bytes(path, "calibration"), read_bytes(facts_path(path), "calibration")
    except OSError as error:
        raise UserError(
            f"the calibration {path!r} cannot be read: {error.filename}: {error.strerror}; kvdelta calibrate makes one, and a "
            "path with a comma is given in quotes"
        ) from None


@dataclass(frozen=True)
class Calibration:
    """facts: scheme, bits, outliers, model, text (harness.leaks.seen_text), tokens, layers."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def facts_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".json")


@lru_cache(maxsize=8)
def read(file: CalibrationFile) -> Calibration:
    """UserError where it is no calibration, or another one by now."""
    stored, said = _contents(file.path)
    digest_of(stored, said, expected=file.digest, what=f"the calibration {file.path!r}")
    try:
        tensors, facts = load(stored), parse_json(said)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file.path} is no calibration: {error}") from None
    if not isinstance(facts, dict) or "text" not in facts:
        raise UserError(f"{facts_path(file.path)} does not say what the calibration was made of")
    if facts.pop(HASH, None) not in (None, _hash_of(stored, facts)):  # none in older files
        raise UserError(
            f"the calibration {file.path} is not as it was written, or {facts_path(file.path).name} beside it: make it again"
        )
    return Calibration(tensors, facts)


def as_bytes(calibration: Calibration) -> tuple[bytes, bytes]:
    """The content of the two files; the JSON has a hash of both."""
    stored = save({name: tensor.contiguous() for name, tensor in calibration.tensors.items()})
    facts = {**calibration.facts, HASH: _hash_of(stored, calibration.facts)}
    return stored, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()


def _hash_of(stored: bytes, facts: Mapping[str, Any]) -> str:
    said = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(hashlib.sha256(stored).digest() + said.encode()).hexdigest()
