"""A grid of comparisons in one folder: models × texts × contexts, each by every protocol. A cell that fails is named, and the
others go on; the same command goes on where it stopped."""

import gc
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from kvdelta.harness.axes import Axes
from kvdelta.harness.caches.contenders import Contender, contenders_of
from kvdelta.harness.comparison import compare_protocols
from kvdelta.harness.dropping import dropped
from kvdelta.harness.leaks import check_calibrations
from kvdelta.harness.no_memory import out_of_memory
from kvdelta.harness.options import Options
from kvdelta.harness.records.provenance import OtherRun, commit, versions
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.sweep import CellRecord, Sweep, has_sweep, load_sweep, save_sweep
from kvdelta.harness.subject.errors import one_line
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject, load_named, prepare
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of

Score = Callable[[Sequence[Contender], Sequence[Options], Subject], list[tuple[Run, Path]]]


def sweep(
    schemes: Sequence[str | Contender],
    options: Options,
    axes: Axes,
    score: Score | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[list[CellRecord], list[tuple[Run, Path]], Path]:
    """Score every cell of a grid; what there is to say of each, the runs, and the folder.

    schemes: as `compare` takes them. options: of every cell, but for what `axes` vary; out: the folder of the sweep. score: as
    `compare_protocols`, its default. Each model is loaded once. A scheme that a cell's model or text cannot take is left out
    of that cell, with its reason; a cell that cannot be had, or whose device has no memory left, has failed, and the others go
    on. UserError: a grid that cannot be, a folder that holds something else, no cell that could be scored.
    """
    contenders = contenders_of(schemes, on_note)
    dropped(options, contenders)
    planned = axes.cells(options)
    folder = Path(options.out) if options.out else _default_folder(contenders, options, axes)
    record = _opened(folder, options.command)
    known = {cell.folder for cell in record.cells}
    for cell, _ in planned:
        if cell.folder not in known:
            record.put(cell)
    save_sweep(record, folder)
    loaded: LoadedModel | None = None
    broken: dict[str | None, str] = {}  # by model, why it cannot be loaded
    done: list[tuple[Run, Path]] = []
    last: str | None = None
    for number, (cell, asked) in enumerate(planned, 1):
        on_note(
            f"cell {number} of {len(planned)}: {cell.model}, {cell.text}, prefix {cell.prefix} + suffix {cell.suffix}"
        )
        if loaded is not None and last != asked.model:
            loaded = None  # before the next is loaded: there may be room for one
            _free()
        try:
            if asked.model in broken:
                raise UserError(broken[asked.model])
            if loaded is None:
                loaded, last = _load(asked, broken), asked.model
            done += _score(contenders, asked, axes, folder, cell, loaded, score or _compare, on_note)
            cell.status = "complete"
        except OtherRun:
            raise
        except Exception as error:
            memory = out_of_memory(error)
            if not (memory or isinstance(error, UserError)):
                raise
            cell.status, cell.error = "failed", "no memory left on the device" if memory else one_line(error)
            on_note(f"{cell.folder} failed, the others go on: {cell.error}")
        record.put(cell)
        save_sweep(record, folder)
        _free()
    if not done:
        raise UserError(f"no cell could be scored; the first: {planned[0][0].error}")
    return [cell for cell, _ in planned], done, folder


def _score(
    contenders: Sequence[Contender], asked: Options, axes: Axes, folder: Path, cell: CellRecord, loaded: LoadedModel,
    score: Score, on_note: Callable[[str], None],
) -> list[tuple[Run, Path]]:  # fmt: skip
    subject = prepare(asked, loaded)
    usable = []
    for contender in contenders:
        try:
            contender.check(loaded.model, cell.prefix)
            check_calibrations([contender], asked, subject)
        except UserError as error:
            cell.refused[identity_of(contender.name)] = one_line(error)
            on_note(f"{contender.label} is left out here: {one_line(error)}")
        else:
            usable.append(contender)
    if all(contender.lossless for contender in usable):
        raise UserError(f"no scheme can be used here; the first: {next(iter(cell.refused.values()), 'none was given')}")
    gone = dropped(asked, contenders) & {contender.label for contender in usable}
    ways = [
        replace(way, out=f"{folder / cell.folder / _protocol(way)}", drop=sorted(gone))
        for way in asked.by(axes.protocols, axes.steps)
    ]
    return score(usable, ways, subject)


def _protocol(options: Options) -> str:
    return f"{options.protocol}-{options.step}" if options.step else options.protocol


def _compare(contenders: Sequence[Contender], ways: Sequence[Options], subject: Subject) -> list[tuple[Run, Path]]:
    return compare_protocols(contenders, ways, subject=subject)


def _load(asked: Options, broken: dict[str | None, str]) -> LoadedModel:
    try:
        return load_named(asked)
    except UserError as error:
        broken[asked.model] = one_line(error)
        raise


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _default_folder(contenders: Sequence[Contender], options: Options, axes: Axes) -> Path:
    """Named by what is asked for and by the code, so that the same command finds its cells again."""
    asked = (
        asdict(replace(options, command="", wait=False, retry_failed=False, drop=None, time_limit=None)),
        asdict(axes),
        [identity_of(one.name) for one in contenders],
    )
    digest = hashlib.sha256(repr((asked, versions(), commit())).encode()).hexdigest()
    return Path("runs") / f"sweep-{digest[:12]}"


def _opened(folder: Path, command: str) -> Sweep:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = os.listdir(folder)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"the sweep folder {folder} cannot be used: {reason}; choose another with --out") from None
    if has_sweep(folder):
        return load_sweep(folder)
    if names:
        raise UserError(f"{folder} is not empty and holds no sweep; choose another folder with --out")
    return Sweep(command=command)
