"""The cells of a grid of comparisons: what tells them apart, and what each scheme lost in each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from kvdelta.analysis.reading.summary import SummaryRow, summarize
from kvdelta.harness import stopping
from kvdelta.harness.records.run import Run, WindowRecord, named
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.sweep import cell_folders, has_sweep, load_sweep
from kvdelta.schemes.references import identity_of

By = Literal["nll", "kl"]

AXES: tuple[Callable[[Run], str], ...] = (
    lambda run: run.model_name.partition(",")[0].rpartition("/")[2],
    lambda run: run.text_name,
    lambda run: f"prefix {run.settings.window_length - run.settings.score_length}",
    lambda run: f"suffix {run.settings.score_length}",
    lambda run: named(run.settings).removeprefix("stepwise (").removesuffix(")"),
    lambda run: run.settings.dtype,
    lambda run: run.settings.device,
    lambda run: f"{len(run.windows)} window{'s' * (len(run.windows) != 1)}",
)
"""What a cell may be of; it is named by those in which cells differ."""


PREFIX = AXES[2]


def names_by_axes(runs: Sequence[Run], without: Sequence[Callable[[Run], str]] = (), alike: bool = False) -> list[str]:
    """What each run is of, by the axes in which they differ; alike: by those in which they do not."""
    axes = [axis for axis in AXES if axis not in without and (len({axis(run) for run in runs}) == 1) is alike]
    return [", ".join(axis(run) for axis in axes) for run in runs]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run. name: what tells it from the others. refused: schemes that could not be used there, and why. called: schemes
    whose identity the cells have a name for in common."""

    folder: Path
    run: Run
    name: str
    refused: dict[str, str]
    called: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[str, tuple[int, SummaryRow]]:
        """By scheme, whatever the path of its files: its place in the record and its figures; lossless ones are left out."""
        rows = summarize(self.run)
        return {
            self.called.get(identity, identity): (i, rows[i])
            for i, identity in enumerate(map(identity_of, (contender.name for contender in self.run.contenders)))
            if not self.run.contenders[i].lossless
        }

    @property
    def windows(self) -> list[WindowRecord]:
        """In the order of the text, whatever the order in which they were visited."""
        return sorted(self.run.windows, key=lambda window: window.index)

    @property
    def scored(self) -> tuple[str, tuple[int, ...], int]:
        """Which tokens were scored: equal where two cells have the same windows, whatever stands before them."""
        prefix = self.run.settings.window_length - self.run.settings.score_length
        starts = tuple(window.start + prefix for window in self.windows)
        return self.run.settings.text_sha256, starts, self.run.settings.score_length

    @property
    def looks(self) -> int:
        return len(stopping.looks(self.run.settings))

    @property
    def has_intervals(self) -> bool:
        return len(self.run.windows) > 1 and self.run.settings.independent

    def floor(self, by: By) -> float:
        """What no difference of losses is told below: the noise floor, nats a token."""
        floor = self.run.noise_floor
        return 0.0 if floor is None else floor.kl if by == "kl" else floor.delta_nll

    def losses(self, names: Sequence[str], by: By) -> Float64[np.ndarray, "schemes windows"]:
        """Nats a token more than the cell's exact (or KL from it), a window; NaN of what has no figures here."""
        found = np.full((len(names), len(self.run.windows)), np.nan)
        for s, name in enumerate(names):
            if name in self.rows and not self.rows[name][1].refused:
                i = self.rows[name][0]
                for w, window in enumerate(self.windows):
                    found[s, w] = (window.kl[i] if by == "kl" else window.nll[i] - window.nll[0]) / window.count
        return found

    def why_not(self, name: str) -> str:
        """Why a scheme has no figures here; empty where it has."""
        if name in self.rows:
            row = self.rows[name][1]
            return row.refused and (row.error or f"{row.refused}: {row.audit}")
        return self.refused.get(name, "not scored there")


def gather_cells(
    folders: Sequence[Path], on_note: Callable[[str], None] = lambda text: None
) -> tuple[list[Cell], dict[str, str]]:
    """The complete runs in folders, which may hold several protocols or be those of sweeps; and the cells of sweeps that have no
    record, with the reason. on_note is told which runs are not complete. UserError where a folder holds no run."""
    found: list[tuple[Path, Run, dict[str, str]]] = []
    failed: dict[str, str] = {}
    for folder in folders:
        refused: dict[str, dict[str, str]] = {}
        if has_sweep(folder):
            for cell in load_sweep(folder).cells:
                refused[cell.folder] = {identity_of(name): why for name, why in cell.refused.items()}
                if cell.status != "complete":
                    failed[cell.folder] = cell.error or "not scored yet; give the command of the sweep again"
        for place in cell_folders(folder):
            run = load_run(place)
            if run.status != "complete":
                done = f"{len(run.windows)} of {len(run.settings.windows)} windows"
                on_note(f"{place} is left out: it is not complete ({done}); give its command again: {run.command}")
                continue
            first = place.relative_to(folder).parts[:1]
            found.append((place, run, refused.get(first[0] if first else "", {})))
    names = _names([run for _, run, _ in found], [str(place) for place, _, _ in found])
    called = _called([run for _, run, _ in found])
    return [Cell(place, run, name, why, called) for (place, run, why), name in zip(found, names, strict=True)], failed


def _called(runs: Sequence[Run]) -> dict[str, str]:
    """Schemes without their calibration, by identity. A calibration is of one model, so a scheme that each of several
    models has calibrated once is one scheme; where a model has two, their hashes tell them apart."""
    found: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for identity in (identity_of(contender.name) for contender in run.contenders):
            of_models = found.setdefault(_uncalibrated(identity), {})
            of_models.setdefault(repr(run.settings.model), set()).add(identity)
    return {
        identity: name
        for name, of_models in found.items()
        if len(of_models) > 1 and all(len(identities) == 1 for identities in of_models.values())
        for identity in set().union(*of_models.values())
    }


def _uncalibrated(identity: str) -> str:
    return re.sub(r"([:,])calibration=#[0-9a-f]+(,?)", lambda field: field[1] if field[2] else "", identity)


def _names(runs: Sequence[Run], folders: Sequence[str]) -> list[str]:
    """By folder, where their axes tell no difference."""
    by_axes = names_by_axes(runs)
    return [
        name if name and by_axes.count(name) == 1 else folder for name, folder in zip(by_axes, folders, strict=True)
    ]
