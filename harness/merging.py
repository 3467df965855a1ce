"""Runs joined: those of other schemes on the same windows, and of other windows by the same schemes; and what was scored again put in the
place of what it replaces."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from harness.failures import blank_after_failure, failures
from harness.records import tokens
from harness.records.run import Audit, NoiseFloor, Run, Settings, WindowRecord
from harness.records.run_folder import RUN_FILE, save_run
from schemes.errors import UserError
from schemes.references import identity_of

JOINED = ("contenders", "windows")
"""The settings in which runs that are joined may differ."""
ROWS = ("nll", "kl", "tvd", "top1", "probability", "key_pairs", "value_pairs", "pairs")
"""The fields of a window that have a number for each contender."""


@dataclass(frozen=True)
class Part:
    """A run and its folder."""

    run: Run
    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def rows(self) -> dict[str, int]:
        """By contender, which row is its."""
        return {identity_of(one.name): i for i, one in enumerate(self.run.contenders)}

    @property
    def windows(self) -> dict[int, WindowRecord]:
        return {window.index: window for window in self.run.windows}


def merged(parts: Sequence[Part], out: Path, command: str) -> Run:
    """The run that all parts are of, saved in `out`. UserError where they differ in what decides numbers, where a scheme has no figures
    for a window of another, or where two have figures for the same that differ."""
    for part in parts:
        _check(part, parts[0])
    groups: dict[frozenset[int], list[Part]] = {}
    for part in parts:
        groups.setdefault(frozenset(part.windows), []).append(part)
    _check_apart(groups)
    names = list(dict.fromkeys(chain(*(part.rows for part in parts))))
    sources = _sources(parts, names)
    whole = parts[0].run.model_copy(deep=True)
    whole.command, whole.summary = command, []
    whole.settings = Settings.model_validate(
        whole.settings.model_dump() | {"contenders": names, "windows": sorted(chain(*groups))}
    )
    first = {name: next(part for part in parts if name in part.rows) for name in names}
    whole.contenders = [part.run.contenders[part.rows[name]].model_copy(deep=True) for name, part in first.items()]
    for name, contender in zip(names, whole.contenders, strict=True):
        contender.error = next(
            (error for part in parts if name in part.rows and (error := _record(part, name).error)), None
        )
    batches = sorted(
        (batch for same in groups.values() for batch in _batches(same[0].run)), key=lambda batch: batch[0].index
    )
    whole.batches = [len(batch) for batch in batches]
    whole.windows = [_window(window.index, names, sources, out) for batch in batches for window in batch]
    whole.audit = _audit(groups.values())
    if whole.noise_floor:
        whole.noise_floor = NoiseFloor.of(
            whole.noise_floor.routes, len(whole.windows) * (whole.settings.score_length - 1)
        )
    return _finished(whole, out)


def with_windows(run: Run, folder: Path, again: Part, order: Sequence[int]) -> Run:
    """A run whose damaged windows were scored again by all its contenders. order: of all windows, as they are scored."""
    parts = [Part(run, folder), again]
    names, place = list(parts[0].rows), {index: i for i, index in enumerate(order)}
    sources = {(name, index): part for part in parts for name in names for index in part.windows}
    made = {index: _window(index, names, sources, folder) for index in again.windows}
    run.windows = sorted((parts[0].windows | made).values(), key=lambda window: place[window.index])
    return _finished(run, folder)


def with_rows(run: Run, folder: Path, again: Part) -> Run:
    """A run of which some rows were scored again, beside exact. UserError where exact has other losses by now."""
    whole = Part(run, folder)
    exact, *names = again.rows
    for index, window in whole.windows.items():
        _check_alike(window, again.windows[index], 0, 0, whole, again, exact)
    sources = {(name, index): again if name in names else whole for name in whole.rows for index in whole.windows}
    for name in names:
        contender = _record(again, name)
        run.contenders[whole.rows[name]] = contender
        _replace(run.audit, again.run.audit, contender.label)
    run.windows = [_window(window.index, list(whole.rows), sources, folder) for window in run.windows]
    return _finished(run, folder)


def _check(part: Part, first: Part) -> None:
    if part.run.status != "complete":
        raise UserError(f"{part} is not complete: give the command that made it again, and merge it then")
    if part.run.settings.until_se is not None:
        raise UserError(
            f"{part} ended by its standard errors (until_se), so which windows it has is a result: it cannot be merged"
        )
    old, new = first.run.settings.model_dump(), part.run.settings.model_dump()
    if differs := [name for name in old if old[name] != new[name] and name not in JOINED]:
        named = "; ".join(f"{name}: {_short(old[name])} and {_short(new[name])}" for name in differs)
        raise UserError(f"{first} and {part} are runs of different settings and cannot be merged ({named})")


def _short(value: object, longest: int = 60) -> str:
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _check_apart(groups: Mapping[frozenset[int], Sequence[Part]]) -> None:
    """UserError where runs share some windows and not all: what the audit counted of these alone no record says."""
    for one, parts in groups.items():
        for other, others in groups.items():
            if one is not other and (both := one & other):
                raise UserError(
                    f"{parts[0]} and {others[0]} share {len(both)} windows, such as {min(both)}, and not all: merge runs of the "
                    "same windows, or of windows apart"
                )


def _sources(parts: Sequence[Part], names: Sequence[str]) -> dict[tuple[str, int], Part]:
    """By contender and window, who has the figures."""
    sources: dict[tuple[str, int], Part] = {}
    for part in parts:
        for name, row in part.rows.items():
            for index, window in part.windows.items():
                if before := sources.get((name, index)):
                    _check_alike(before.windows[index], window, before.rows[name], row, before, part, name)
                else:
                    sources[name, index] = part
    for name in names:
        for part in parts:
            if missing := [index for index in part.windows if (name, index) not in sources]:
                raise UserError(
                    f"{name} has no figures for {len(missing)} windows of {part}, such as {missing[0]}; score it there first"
                )
    return sources


def _check_alike(a: WindowRecord, b: WindowRecord, i: int, j: int, one: Part, other: Part, name: str) -> None:
    x, y = a.nll[i], b.nll[j]
    if x != y and not (math.isnan(x) and math.isnan(y)):
        raise UserError(
            f"the losses of {name} in window {a.index} are {x:.9g} nats in {one} and {y:.9g} in {other}: they were scored in "
            "other batches, by other code or on another machine, and cannot stand in one table"
        )


def _window(index: int, names: Sequence[str], sources: Mapping[tuple[str, int], Part], folder: Path) -> WindowRecord:
    """A window whose rows come from several runs; its tokens go into `folder` where all of them kept theirs."""
    parts = [sources[name, index] for name in names]
    found = [(part.windows[index], part.rows[name]) for part, name in zip(parts, names, strict=True)]
    rows = {
        field: [getattr(window, field)[row] for window, row in found]
        for field in ROWS
        if all(getattr(window, field) for window, _ in found)  # older records have no TVD
    }
    first = found[0][0]
    made = WindowRecord(index=index, start=first.start, count=first.count, **rows)  # type: ignore[arg-type]
    if all(tokens.has_tokens(part.folder) for part in parts):
        loaded = {part.folder: tokens.load_tokens(part.folder, index) for part in parts}
        arrays = [loaded[part.folder] for part in parts]
        shared = [name for name in arrays[0] if all(name in one for one in arrays)]
        stacked = {
            name: np.stack([one[name][row] for one, (_, row) in zip(arrays, found, strict=True)]) for name in shared
        }
        made.tokens = tokens.save_tokens(folder, index, stacked)
    return made


def _audit(groups: Iterable[Sequence[Part]]) -> Audit:
    audit = Audit()
    for same in groups:
        counted: set[str] = set()
        for part in same:
            theirs = part.run.audit
            if theirs.identity_is_exact is not None:
                audit.identity_is_exact = audit.identity_is_exact is not False and theirs.identity_is_exact
            for label, moved in theirs.zeroed_codes_move_logits.items():
                audit.zeroed_codes_move_logits[label] = audit.zeroed_codes_move_logits.get(label, True) and moved
            audit.unmoved_by_zeroed_codes |= theirs.unmoved_by_zeroed_codes
            for label in theirs.reads.keys() - counted:
                audit.add_reads(label, theirs.reads[label])
            counted |= theirs.reads.keys()
    return audit


def _replace(audit: Audit, by: Audit, label: str) -> None:
    for ours, theirs in (
        (audit.zeroed_codes_move_logits, by.zeroed_codes_move_logits),
        (audit.unmoved_by_zeroed_codes, by.unmoved_by_zeroed_codes),
        (audit.reads, by.reads),
    ):
        ours.pop(label, None)
        if label in theirs:
            ours[label] = theirs[label]  # type: ignore[assignment]


def _batches(run: Run) -> list[list[WindowRecord]]:
    windows = iter(run.windows)
    return [[next(windows) for _ in range(size)] for size in run.batches or [1] * len(run.windows)]


def _record(part: Part, name: str):
    return part.run.contenders[part.rows[name]]


def _finished(run: Run, folder: Path) -> Run:
    blank_after_failure(run)
    if all(window.tokens for window in run.windows):
        for window in run.windows:
            tokens.forget_failed(folder, window)
        if run.status == "complete":
            tokens.set_tails(run, folder)
    run.audit.failures = failures(run)
    save_run(run, folder, RUN_FILE)
    return run
