"""Records that belong together: the same model, text, windows and protocol, or they do not join."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvdelta.analysis.reading.selection import spans
from kvdelta.harness.records.measurement import (
    Arrays,
    Kind,
    Measurement,
    has_measurement,
    load_measurement,
    measured_arrays,
    whole_rows,
)
from kvdelta.harness.records.run import Header, Run
from kvdelta.harness.records.run_folder import RECORD_FILES, RUN_FILE, load_run
from kvdelta.schemes.errors import UserError

SAME = ("model", "text_sha256", "windows", "protocol", "step", "window_length", "score_length", "bos_token_id", "dtype")


@dataclass
class Joined:
    """Records by kind, each with its folder; arrays of measurements as `measured_arrays` gives them, without the schemes that have
    failed."""

    runs: list[tuple[Path, Run]] = field(default_factory=list)
    errors: list[tuple[Path, Measurement, Arrays]] = field(default_factory=list)
    sensitivity: list[tuple[Path, Measurement, Arrays]] = field(default_factory=list)
    outliers: list[tuple[Path, Measurement, Arrays]] = field(default_factory=list)

    @property
    def headers(self) -> list[tuple[Path, Header]]:
        measured = [*self.errors, *self.sensitivity, *self.outliers]
        return [*self.runs, *((folder, record) for folder, record, _ in measured)]


def gather(folders: Sequence[str | Path]) -> Joined:
    """Every record in these folders. ValueError: a folder without one, an unfinished record."""
    joined = Joined()
    for folder in map(Path, folders):
        before = len(joined.headers)
        if os.path.exists(folder / RUN_FILE):
            joined.runs.append((folder, load_run(folder)))
        kinds: dict[Kind, list] = {
            "errors": joined.errors,
            "sensitivity": joined.sensitivity,
            "outliers": joined.outliers,
        }
        for kind, into in kinds.items():
            if has_measurement(folder, kind):
                record = load_measurement(folder, kind)
                _complete(folder, record)
                into.append((folder, *whole_rows(record, measured_arrays(folder, record))))
        if len(joined.headers) == before:
            raise UserError(f"{folder} holds no record: none of {', '.join(RECORD_FILES)}")
    for folder, run in joined.runs:
        _complete(folder, run)
    return joined


def _complete(folder: Path, record: Header) -> None:
    if record.status != "complete":
        raise UserError(f"{folder} is not complete; give its command again to go on: {record.command}")


def check_joins(joined: Joined) -> None:
    """ValueError, with both folders and what differs, where two records are not of the same thing."""
    (first, one), *others = joined.headers
    for folder, other in others:
        for name in SAME:
            a, b = (r.scored if name == "windows" else getattr(r.settings, name) for r in (one, other))
            if a != b:
                raise UserError(f"{first} and {folder} do not join: {name} is {_said(a)} there and {_said(b)} here")


def _said(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("id", value))
    if isinstance(value, list):
        return f"{len(value)} ({spans(value)})" if len(value) < 9 else f"{len(value)} ({spans(value[:3])}, …)"
    return str(value)
