"""Records of what the analyzer measures: a header in JSON, one file of arrays a window; they join with runs later."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from kvdelta.harness.records.hashes import of_bytes
from kvdelta.harness.records.record import read_record, save_record
from kvdelta.harness.records.run import Header
from kvdelta.harness.records.writing import arrays_of, load_arrays, save_arrays
from kvdelta.schemes.given import read_bytes

Kind = Literal["outliers", "errors", "sensitivity"]
Arrays = dict[str, np.ndarray]


class Measurement(Header):
    """What was measured, of what. labels: schemes as the user typed them; layers and KV heads: the indices measured,
    in the order of the arrays' axes. failed: by label, why a scheme has no figures: NaN in the arrays from then on."""

    kind: Kind
    labels: list[str]
    measured_layers: list[int]
    kv_heads: list[int]
    failed: dict[str, str] = Field(default_factory=dict)


def load_measurement(folder: str | Path, kind: Kind) -> Measurement:
    """UserError where `folder` holds no such record."""
    return read_record(folder, f"{kind}.json", Measurement)


def has_measurement(folder: str | Path, kind: Kind) -> bool:
    return os.path.exists(Path(folder) / f"{kind}.json")  # of what cannot be looked at too


def measured_arrays(folder: str | Path, record: Measurement) -> Arrays:
    """Each array with the windows on its first axis, in the record's order; UserError where one is missing.

    Arrays of single windows, such as pictures, have a length of 1 there.
    """
    windows: dict[str, list[np.ndarray]] = {}
    for window in record.settings.windows:
        file = window_file(record.kind, window)
        for name, array in load_arrays(Path(folder) / file, record.files.get(file, "")).items():
            windows.setdefault(name, []).append(array)
    return {name: np.stack(pieces) for name, pieces in windows.items()}


def whole_rows(record: Measurement, arrays: Arrays) -> tuple[Measurement, Arrays]:
    """Record and arrays without the schemes that have failed: those that have figures to work with."""
    rows = [i for i, label in enumerate(record.labels) if label not in record.failed]
    if len(rows) == len(record.labels):
        return record, arrays
    names = [record.settings.contenders[i] for i in rows]
    settings = record.settings.model_copy(update={"contenders": names})
    some = record.model_copy(update={"labels": [record.labels[i] for i in rows], "settings": settings})
    # what has no axis of schemes is of exact: its losses, and the tokens that are scored
    return some, {name: array[:, rows] if array.ndim > 2 else array for name, array in arrays.items()}


def save_measurement(record: Measurement, folder: Path) -> None:
    save_record(record, folder / f"{record.kind}.json")


def save_window(record: Measurement, folder: Path, window: int, arrays: Arrays) -> None:
    """On disk; the record says its hash when it is saved next."""
    file = window_file(record.kind, window)
    record.files[file] = save_arrays(folder / file, arrays)


def has_window(record: Measurement, folder: Path, window: int) -> bool:
    """Whole, and as it was written where the record says how."""
    file = window_file(record.kind, window)
    try:
        content = read_bytes(folder / file, "file of arrays")
        arrays_of(content)
    except (OSError, ValueError):
        return False
    return record.files.setdefault(file, sha256 := of_bytes(content)) == sha256


def window_file(kind: Kind, window: int) -> str:
    return f"{kind}/{window:06d}.npz"
