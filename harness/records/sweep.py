"""What a sweep leaves beside its cells: sweep.json says which there are, and why one, or a scheme in one, has no figures."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from kvdelta.harness.records.record import Record, Typed, read_record, save_record
from kvdelta.harness.records.run_folder import run_folders

SWEEP_FILE = "sweep.json"


class CellRecord(Typed):
    """One model, text and context. refused: schemes that cannot be used there, by canonical name, and why. error: why the
    cell has no record, in one line."""

    folder: str  # in that of the sweep
    model: str
    text: str
    prefix: int  # tokens
    suffix: int
    status: Literal["left", "complete", "failed"] = "left"
    error: str | None = None
    refused: dict[str, str] = Field(default_factory=dict)


class Sweep(Record):
    """A grid of comparisons in one folder."""

    command: str
    cells: list[CellRecord] = Field(default_factory=list)

    def put(self, cell: CellRecord) -> None:
        """In the place of what was said of this cell, or behind the others."""
        at = {one.folder: i for i, one in enumerate(self.cells)}
        if cell.folder in at:
            self.cells[at[cell.folder]] = cell
        else:
            self.cells.append(cell)


def has_sweep(folder: Path) -> bool:
    return os.path.isfile(folder / SWEEP_FILE)


def load_sweep(folder: Path) -> Sweep:
    """UserError where there is none, or it is not whole."""
    return read_record(folder, SWEEP_FILE, Sweep)


def save_sweep(sweep: Sweep, folder: Path) -> None:
    save_record(sweep, folder / SWEEP_FILE)


def cell_folders(folder: Path) -> list[Path]:
    """Run folders: of a sweep those of its complete cells, in the order of the grid, each by every protocol; of any other
    folder as `run_folders`."""
    if not has_sweep(folder):
        return run_folders(folder)
    complete = [cell for cell in load_sweep(folder).cells if cell.status == "complete"]
    return [run for cell in complete for run in run_folders(folder / cell.folder)]
