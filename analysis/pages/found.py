"""What the given folders hold: runs that compare, measurements that join with them, replays, recommendations, costs, and maps."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvdelta.analysis.pages.comparing import check_compare
from kvdelta.analysis.reading.cells import AXES, Cell, gather_cells, names_by_axes
from kvdelta.analysis.reading.joined import SAME, Joined, gather
from kvdelta.harness.records.bench import BENCH_FILE, Bench, load_bench
from kvdelta.harness.records.measurement import has_measurement
from kvdelta.harness.records.recommendation import (
    RECOMMENDATION_FILE,
    Recommendation,
    has_recommendation,
    load_recommendation,
)
from kvdelta.harness.records.replay import REPLAY_FILE, Replay, has_replay, load_replay, load_steps
from kvdelta.harness.records.run import Header, Run
from kvdelta.harness.records.run_folder import RECORD_FILES, RUN_FILE, run_folders
from kvdelta.harness.records.sweep import SWEEP_FILE, has_sweep
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

KINDS = ("errors", "sensitivity", "outliers")
MAPS = "maps"  # the folder that allocate keeps beside its run


@dataclass(eq=False)
class Found:
    """By kind, each with its folder. failed: cells of sweeps without a record, and why. measured: those that join are together.
    allocations: run and maps by file name; their runs are no cells, unless there is nothing else."""

    cells: list[Cell] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    measured: list[Joined] = field(default_factory=list)
    replays: list[tuple[Path, Replay, Run]] = field(default_factory=list)
    recommendations: list[tuple[Path, Recommendation]] = field(default_factory=list)
    benches: list[tuple[Path, Bench]] = field(default_factory=list)
    allocations: list[tuple[Path, Run, dict[str, Any]]] = field(default_factory=list)


def find(folders: Sequence[Path], on_note: Callable[[str], None] = lambda text: None) -> Found:
    """Every record in these folders. UserError where one holds none, or where runs do not compare."""
    found = Found()
    compared: list[Path] = []
    for folder in folders:
        before = len(compared)
        if has_replay(folder):
            found.replays.append((folder, load_replay(folder), load_steps(folder)))
        elif has_recommendation(folder):
            found.recommendations.append((folder, load_recommendation(folder)))
        elif os.path.isfile(folder / BENCH_FILE):
            found.benches.append((folder, load_bench(folder)))
        elif any(has_measurement(folder, kind) for kind in KINDS):
            found.measured.append(gather([folder]))
            compared += [folder] if os.path.isfile(folder / RUN_FILE) else []
        else:
            _check_holds_runs(folder)
            compared.append(folder)
        for place in compared[before:]:
            _set_allocation(found, place)
    allocated = [folder for folder, _, _ in found.allocations]
    compared = [folder for folder in compared if folder not in allocated] or compared
    if compared:
        found.cells, found.failed = gather_cells(compared, on_note)
        sweeps = [folder for folder in compared if has_sweep(folder)]
        check_compare(found.cells, sweeps)
        if not found.cells and not (found.measured or found.replays or found.recommendations or found.benches):
            raise UserError("none of these runs is complete; give the command of one again, and the report then")
    found.cells = [replace(cell, name=name) for cell, name in zip(found.cells, _named(found.cells), strict=True)]
    found.measured = _joined(found.measured, found.cells)
    return found


def _check_holds_runs(folder: Path) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}; name the one that a command said as `record:`")
    if has_sweep(folder) or os.path.isfile(run_folders(folder)[0] / RUN_FILE):
        return
    shown = [name for name in ("tasks.json", "lm-eval.json") if os.path.isfile(folder / name)]
    if shown:
        raise UserError(f"{folder} holds {shown[0]}, of which the page has no panel; kvdelta show {folder} prints it")
    kinds = ", ".join([*RECORD_FILES, REPLAY_FILE, RECOMMENDATION_FILE, BENCH_FILE, SWEEP_FILE])
    raise UserError(
        f"{folder} holds no record: none of {kinds}; name the folder that a command said as `record:`, or that of a sweep"
    )


def _set_allocation(found: Found, folder: Path) -> None:
    files = sorted((folder / MAPS).glob("*.json")) if os.path.isfile(folder / RUN_FILE) else []
    if files:
        from kvdelta.harness.records.run_folder import load_run

        maps = {file.name: parse_json(read_bytes(file, "map")) for file in files}
        found.allocations.append((folder, load_run(folder), maps))


def _named(cells: Sequence[Cell]) -> list[str]:
    """By what tells them apart; of a single one by its model and protocol."""
    if len(cells) == 1:
        return [f"{AXES[0](cells[0].run)}, {AXES[4](cells[0].run)}"]
    by_axes = names_by_axes([cell.run for cell in cells])
    return [name if by_axes.count(name) == 1 else str(cell.folder) for cell, name in zip(cells, by_axes, strict=True)]


def _joined(folders: Sequence[Joined], cells: Sequence[Cell]) -> list[Joined]:
    """Measurements of the same model, text and windows together, with the runs that are of these too."""
    groups: dict[str, Joined] = {}
    for one in folders:
        for kind in KINDS:
            for folder, record, arrays in getattr(one, kind):
                getattr(groups.setdefault(_same(record), Joined()), kind).append((folder, record, arrays))
        for folder, run in one.runs:
            if _same(run) in groups:
                groups[_same(run)].runs.append((folder, run))
    for cell in cells:
        group = groups.get(_same(cell.run))
        if group is not None and cell.folder not in [folder for folder, _ in group.runs]:
            group.runs.append((cell.folder, cell.run))
    return list(groups.values())


def _same(record: Header) -> str:
    """What records that join have alike."""
    return repr([record.scored if name == "windows" else getattr(record.settings, name) for name in SAME])
