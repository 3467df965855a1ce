"""Files of calibrated schemes: tensors in safetensors, and beside them, as JSON, what they were made of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from schemes.errors import UserError


class CalibrationFile(str):
    """A path to a calibration, "FILE#HASH"; without a hash it gets that of the content.

    ValueError where the file, or its JSON, cannot be read, or has another hash than the one given.
    """

    def __new__(cls, text: str) -> "CalibrationFile":
        path, _, expected = text.partition("#")
        try:
            found = hashlib.sha256(Path(path).read_bytes() + facts_path(path).read_bytes()).hexdigest()[:8]
        except OSError as error:
            raise UserError(
                f"the calibration {path!r} cannot be read: {error.filename}: {error.strerror}; kvdelta calibrate makes one"
            ) from None
        if expected and expected != found:
            raise UserError(f"the calibration {path!r} has changed since, its hash is now {found}")
        return super().__new__(cls, f"{path}#{found}")


@dataclass(frozen=True)
class Calibration:
    """facts: scheme, bits, outliers, model, text (harness.leaks.seen_text), tokens, layers."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def facts_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".json")


@lru_cache(maxsize=8)
def read(file: CalibrationFile) -> Calibration:
    """ValueError where it is no calibration."""
    path = file.partition("#")[0]
    try:
        tensors = load(Path(path).read_bytes())
        facts = json.loads(facts_path(path).read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no calibration: {error}") from None
    if not isinstance(facts, dict) or "text" not in facts:
        raise UserError(f"{facts_path(path)} does not say what the calibration was made of")
    return Calibration(tensors, facts)


def as_bytes(calibration: Calibration) -> tuple[bytes, bytes]:
    """The content of the two files."""
    facts = json.dumps(calibration.facts, indent=1, ensure_ascii=False) + "\n"
    return save({name: tensor.contiguous() for name, tensor in calibration.tensors.items()}), facts.encode()
