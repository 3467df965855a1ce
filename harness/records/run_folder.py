"""The folder of a run: run.json, its journal, and the files of its tokens; read so that what is damaged is named.

While a run goes, run.json is as it was when it began or went on, and what each batch adds is a line of the journal beside it, run.journal.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvdelta.harness.records import hashes, journal, tokens
from kvdelta.harness.records.record import not_as_written, of_kind, read_content, save_record
from kvdelta.harness.records.run import Entry, Run, WindowRecord
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json

RUN_FILE = "run.json"
RECORD_FILES = (RUN_FILE, "outliers.json", "errors.json", "sensitivity.json")  # of which several may lie in a folder
NAMED = 3  # windows of a message
PARTS = "processes"  # folder of what other processes have scored, in that of the run


@dataclass(frozen=True)
class Lost:
    """A window that is damaged. position: in the record; index: in the grid, where that can be read; reason: in words."""

    position: int
    index: int | None
    reason: str

    def __str__(self) -> str:
        return f"{'a window' if self.index is None else f'window {self.index}'}: {self.reason}"


@dataclass(frozen=True)
class Damaged:
    """A run without its windows that are damaged, and these."""

    run: Run
    lost: list[Lost] = field(default_factory=list)


def run_folders(folder: Path) -> list[Path]:
    """The folder, or those in it where it holds a comparison by several protocols: in the order in which they were asked for
    as far as one can tell, two-pass first, then long steps before short ones. Those in its folders, where it is a sweep's."""
    if os.path.isfile(folder / RUN_FILE):  # False too where the system refuses the name
        return [folder]
    if not os.path.isdir(folder):
        return [folder]
    found = [one.parent for one in folder.glob(f"*/{RUN_FILE}")] or [
        one.parent for one in folder.glob(f"*/*/{RUN_FILE}")
    ]
    steps = {one: one.name.removeprefix("stepwise-") for one in found}
    return sorted(found, key=lambda one: (one.parent, -int(steps[one]) if steps[one].isdecimal() else -math.inf)) or [
        folder
    ]


def save_run(run: Run, folder: Path, file: str = RUN_FILE) -> None:
    """All of it, so that the journal is not needed any more."""
    save_record(run, folder / file)
    journal_of(folder, file).unlink(missing_ok=True)


def journal_of(folder: Path, file: str = RUN_FILE) -> Path:
    return (folder / file).with_suffix(".journal")


def parts_of(folder: Path) -> list[str]:
    """The records that other processes keep beside that of the first."""
    return [f"{PARTS}/{path.name}" for path in sorted((folder / PARTS).glob("*.json"))]


def entries_of(folder: Path, file: str = RUN_FILE) -> list[Entry | None]:
    """What the journal has, None for a line that was damaged; UserError where it is another version's."""
    path = journal_of(folder, file)
    try:
        return [None if line is None else Entry.model_validate(parse_json(line)) for line in journal.read(path)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; delete it, and its windows are scored again"
        ) from None


def load_run(folder: str | Path, file: str = RUN_FILE) -> Run:
    """Read a run folder; UserError where there is none, or where anything in it is damaged. A row whose sums are not finite has failed;
    older records do not say so."""
    found = load_whole(folder, file)
    if found.lost:
        named = "; ".join(map(str, found.lost[:NAMED]))
        named += f"; and {len(found.lost) - NAMED} more" * (len(found.lost) > NAMED)
        raise UserError(
            f"{Path(folder) / file} is damaged: {named}. The command that made it scores these windows again and keeps the rest; "
            f"kvdelta verify {folder} names all"
        )
    return found.run


def load_whole(folder: str | Path, file: str = RUN_FILE) -> Damaged:
    """What is whole of a run folder. UserError where that cannot be known, since run.json itself, its windows aside, is damaged."""
    folder = Path(folder)
    run, lost = read_run(folder, file)
    count, whole, keeps = len(run.windows) + len(lost), [], tokens.has_tokens(folder)
    places = sorted(set(range(count)) - {one.position for one in lost})
    for position, window in zip(places, run.windows, strict=True):
        reason = tokens.damage(folder, window) if keeps else None
        lost += [Lost(position, window.index, reason)] if reason else []
        whole += [] if reason else [window]
    run.windows = whole
    for i, contender in enumerate(run.contenders):
        bad = [w.index for w in run.windows if not all(map(math.isfinite, (w.nll[i], w.kl[i], w.probability[i])))]
        if bad and contender.error is None:
            contender.error = f"NaN or infinite losses or KL in window {bad[0]}"
    return Damaged(run, sorted(lost, key=lambda one: one.position))


def read_run(folder: Path, file: str) -> tuple[Run, list[Lost]]:
    """A record with what its journal adds, and the windows that they lost; its tokens are not looked at. UserError as of `load_whole`."""
    path = folder / file
    content = read_content(folder, file)
    changed, wrong = hashes.damaged(content)
    if changed:
        raise not_as_written(path)
    lost = [Lost(i, _index(content["windows"][i]), "it is not as it was written") for i in wrong]
    if lost:
        content["windows"] = [one for i, one in enumerate(content["windows"]) if i not in set(wrong)]
    run = of_kind(path, content, Run)
    if run.status != "complete":
        lost += _add_entries(run, lost, entries_of(folder, file), journal_of(folder, file))
    _check(run, path, len(run.windows) + len(lost))
    return run, lost


def _index(window: object) -> int | None:
    index = window.get("index") if isinstance(window, dict) else None
    return index if isinstance(index, int) else None


def _add_entries(run: Run, lost: Sequence[Lost], entries: Sequence[Entry | None], path: Path) -> list[Lost]:
    """What the journal says is added to the run; the windows of its lines that were damaged. How many these are the entry behind them says,
    and its audit counts what they read. lost: windows that run.json lost."""
    have, begun = {window.index for window in run.windows}, len(run.windows) + len(lost)
    count, gone, damaged = begun, list[Lost](), list[int]()
    for line, entry in enumerate(entries, 1):
        if entry is None:
            damaged.append(line)
            continue
        before = entry.before
        if before is None and damaged:
            raise UserError(
                f"{path} is damaged: line {damaged[0]} is not as it was written, and what is behind it builds on it; delete it, and its "
                "windows are scored again"
            )
        # what was saved in run.json when the run was ended is there
        if (before is not None and before < begun) or have & {window.index for window in entry.windows}:
            continue
        missing = 0 if before is None else before - count
        if not 0 <= missing <= len(run.settings.windows):
            raise UserError(
                f"{path} is not a journal: line {line} is of a run that had {before} windows, and there are {count}"
            )
        if not run.batches:
            run.batches = [1] * count
        reason = f"{_lines(damaged)} not as written" if damaged else "a line is gone"
        gone += [Lost(count + i, None, f"{path.name}: {reason}") for i in range(missing)]
        size = max(1, run.batch)
        run.batches += [min(size, missing - at) for at in range(0, missing, size)]
        run.batches.append(len(entry.windows))
        run.windows += entry.windows
        count += missing + len(entry.windows)
        damaged = []
        run.batch, run.audit, run.noise_floor = entry.batch, entry.audit, entry.noise_floor
        run.contenders = run.contenders if entry.contenders is None else entry.contenders
    return gone


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} {'are' if len(numbers) > 1 else 'is'}"


def _check(run: Run, path: Path, windows: int) -> None:
    """UserError where parts of a record do not fit each other. windows: how many it should have, those that are damaged too."""
    indices = [window.index for window in run.windows]
    wrong = None
    if len(set(indices)) < len(indices) or not set(indices) <= set(run.settings.windows):
        wrong = "it has a window twice, or one that its settings do not name"
    elif run.batches and sum(run.batches) != windows:
        wrong = f"its batches are of {sum(run.batches)} windows, and there are {windows}"
    elif any(not _fits(window, run) for window in run.windows):
        wrong = "a window has not a figure for each of its schemes, or one that cannot be"
    if wrong:
        raise UserError(f"{path} is not a run record: {wrong}")


def _fits(window: WindowRecord, run: Run) -> bool:
    rows, count = len(run.contenders), window.count
    counts = [window.top1, window.key_pairs, window.value_pairs, window.pairs]
    series = [window.nll, window.kl, window.probability, *counts, *([window.tvd] if window.tvd else [])]
    return (
        {len(one) for one in series} == {rows}
        and count == run.settings.score_length - 1
        and all(0 <= agrees <= count for agrees in window.top1)
        and all(
            0 <= read <= pairs
            for side in (window.key_pairs, window.value_pairs)
            for read, pairs in zip(side, window.pairs, strict=True)
        )
    )
