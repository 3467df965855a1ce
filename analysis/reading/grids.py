"""A grid of cells that compare: the same schemes, measured in the same way, each against its own exact."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from kvdelta.analysis.reading.cells import By, Cell
from kvdelta.schemes.errors import UserError

NAMED = 4  # of what lacks something, in a message


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells that compare. names, labels: of the schemes, lossless ones left out. by: what a loss is. losses: by cell, [schemes,
    windows]; bits: measured, [cells, schemes], NaN where unknown. failed: cells that have no record, and why."""

    cells: list[Cell]
    names: list[str]
    labels: list[str]
    by: By
    losses: list[np.ndarray]
    bits: np.ndarray
    failed: dict[str, str]

    @property
    def floor(self) -> float:
        """The largest of the cells."""
        return max(cell.floor(self.by) for cell in self.cells)

    @property
    def means(self) -> Float64[np.ndarray, "cells schemes"]:
        return np.stack([one.mean(axis=1) for one in self.losses])


def grid_of(cells: Sequence[Cell], by: By = "nll", common: bool = False, failed: dict[str, str] | None = None) -> Grid:
    """UserError where the cells do not compare, with what to do. common: leave out schemes that some cell lacks without a
    reason, where that is an error else."""
    if len(cells) < 2:
        raise UserError(
            f"{len(cells)} complete run{'s' * (len(cells) != 1)} of a grid of two or more: give more run folders, or the folder "
            "of a sweep; kvdelta show prints a single one"
        )
    check_alike(cells)
    labels: dict[str, str] = {}
    for cell in cells:
        labels |= {name: row.scheme for name, (_, row) in cell.rows.items() if name not in labels}
    lacking = [{name for name in labels if name not in cell.rows and name not in cell.refused} for cell in cells]
    if any(lacking) and not common:
        raise UserError(_lacks(cells, labels, lacking))
    names = [name for name in labels if not any(name in one for one in lacking)]
    if len(names) < 2:
        raise UserError(
            f"the cells have {len(names)} schemes in common, and an order needs 2; score the same schemes in each"
        )
    shown = [labels[name] for name in names]
    if twice := {label for label in shown if shown.count(label) > 1}:  # one name for two files
        shown = [name if label in twice else label for name, label in zip(names, shown, strict=True)]
    bits = [[_bits(cell, name) for name in names] for cell in cells]
    losses = [cell.losses(names, by) for cell in cells]
    return Grid(list(cells), names, shown, by, losses, np.array(bits, dtype=float), failed or {})


def _bits(cell: Cell, name: str) -> float:
    bits = cell.rows[name][1].bits if name in cell.rows else None
    return np.nan if bits is None else bits


def check_alike(cells: Sequence[Cell]) -> None:
    """UserError where cells were not measured in the same way, or two are one, with what to do."""
    for cell in cells:
        if cell.run.settings.protocol == "single-pass":
            raise UserError(
                f"{cell.folder} is by a single pass, which reads no cache, so it has no order; leave it out"
            )
        first = cell.run.contenders[0]
        if not first.lossless:
            raise UserError(
                f"{cell.folder} has {first.label} as its baseline where the others have exact; score it again with exact as "
                "its first scheme, or leave it out"
            )
    versions: dict[int, list[Cell]] = {}
    for cell in cells:
        versions.setdefault(cell.run.settings.measures, []).append(cell)
    if len(versions) > 1:
        said = "; ".join(
            f"{version} in {_some([str(cell.folder) for cell in its])}" for version, its in sorted(versions.items())
        )
        old = versions[min(versions)][0]
        raise UserError(
            f"the measures changed between these runs (version {said}); make the older again into new folders, or leave them "
            f"out; the command of {old.folder} was: {old.run.command}"
        )
    seen: dict[str, Cell] = {}
    for cell in cells:
        settings = cell.run.settings.model_dump(mode="json", include=_CELL) | {"windows": cell.run.scored}
        other = seen.setdefault(repr(settings), cell)
        if other is not cell:
            raise UserError(
                f"{other.folder} and {cell.folder} are of the same model, windows and protocol, so they are one cell; leave one "
                "of them out"
            )


_CELL = {
    "model",
    "text_sha256",
    "protocol",
    "step",
    "window_length",
    "score_length",
    "offset",
    "stride",
    "device",
    "dtype",
}


def _lacks(cells: Sequence[Cell], labels: dict[str, str], lacking: Sequence[set[str]]) -> str:
    worst = max(range(len(cells)), key=lambda c: len(lacking[c]))
    missing = [labels[name] for name in labels if name in lacking[worst]]
    more = sum(map(bool, lacking)) - 1
    others = f", and {more} more lack{'s' * (more == 1)} some" if more else ""
    shared = len([name for name in labels if not any(name in one for one in lacking)])
    return (
        f"{cells[worst].folder} lacks {_some(missing)}, which other cells have{others}; score the same schemes in every cell "
        f"(kvdelta sweep does), or give --common for the {shared} that all have"
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
