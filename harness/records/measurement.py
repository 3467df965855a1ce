"""Records of what the analyzer measures: a header in JSON, one file of arrays a window; they join with runs later."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from harness.records.run import Header, read_record
from harness.records.writing import load_arrays, write_file

Kind = Literal["outliers", "errors", "sensitivity"]
Arrays = dict[str, np.ndarray]


class Measurement(Header):
    """What was measured, of what. labels: schemes as the user typed them; layers and KV heads: the indices measured,
    in the order of the arrays' axes."""

    kind: Kind
    labels: list[str]
    measured_layers: list[int]
    kv_heads: list[int]


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
        for name, array in load_arrays(window_file(Path(folder), record.kind, window)).items():
            windows.setdefault(name, []).append(array)
    return {name: np.stack(pieces) for name, pieces in windows.items()}


def save_measurement(record: Measurement, folder: Path) -> None:
    write_file(folder / f"{record.kind}.json", (record.model_dump_json(indent=1) + "\n").encode())


def window_file(folder: Path, kind: Kind, window: int) -> Path:
    return folder / kind / f"{window:06d}.npz"
