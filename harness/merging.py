"""Runs joined: those of other schemes on the same windows, and of other windows by the same schemes; and what was scored again put in the
place of what it replaces."""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from kvdelta.harness.failures import blank_after_failure, failures
from kvdelta.harness.records import tokens
from kvdelta.harness.records.provenance import open_folder
from kvdelta.harness.records.run import Audit, ContenderRecord, LayerReads, NoiseFloor, Run, Settings, WindowRecord
from kvdelta.harness.records.run_folder import RUN_FILE, Lost, load_whole, save_run
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of

JOINED = ("contenders", "windows")
"""The settings in which runs that are joined may differ. A window is a place in the grid that text, lengths, stride and offset make, which
must be the same: so one of the same number is of the same tokens, however many others a run has."""
ROWS = dict.fromkeys(("nll", "kl", "tvd", "probability"), math.nan) | dict.fromkeys(
    ("top1", "key_pairs", "value_pairs", "pairs"), 0
)
"""The fields of a window that have a number for each contender, and that of one that failed."""
SAID = {
    "nll": "losses",
    "kl": "KL",
    "tvd": "total variation",
    "probability": "probabilities",
    "top1": "agreeing tokens",
}
"""Of such a field, in words; of the others: pairs read."""


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


def merged(
    parts: Sequence[Part],
    out: Path,
    command: str,
    hold: Callable[[Path], None] = lambda folder: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Run:
    """The run that all parts are of, saved in `out`. UserError where they differ in what decides numbers, where a scheme has no figures
    for a window of another, or where two have figures for the same that differ.

    hold: as of `open_folder`. A folder that a stopped merge, or `compare`, began for the same run is taken over; one that holds it complete is
    read.
    """
    for part in parts:
        _check(part, parts[0])
    names = list(dict.fromkeys(chain(*(part.rows for part in parts))))
    sources, keeps = _sources(parts, names), all(tokens.has_tokens(part.folder) for part in parts)
    whole = parts[0].run.model_copy(deep=True)
    whole.command, whole.summary = command, []
    whole.settings = Settings.model_validate(
        whole.settings.model_dump()
        | {"contenders": names, "windows": sorted(set().union(*(part.windows for part in parts)))}
    )
    one_group = len({frozenset(part.windows) for part in parts}) == 1
    whole.contenders = [_joined_record(name, parts, keeps or one_group) for name in names]
    labels = {name: contender.label for name, contender in zip(names, whole.contenders, strict=True)}
    if twice := [label for label, count in Counter(labels.values()).items() if count > 1]:
        raise UserError(
            f"two schemes of these runs are called {twice[0]}, and are not the same: a table could not tell them apart"
        )
    whole.audit = _audit(parts, labels)
    if there := _begun(whole, out, hold):
        on_note(f"{out} holds this run already, complete; its record is printed again")
        return there
    batches = _batches(parts)
    whole.batches = [len(batch) for batch in batches]
    whole.windows = [_window(index, names, sources, out, keeps) for batch in batches for index in batch]
    if whole.noise_floor:
        whole.noise_floor = NoiseFloor.of(
            whole.noise_floor.routes, len(whole.windows) * (whole.settings.score_length - 1)
        )
    return _finished(whole, out, keeps)


def _begun(whole: Run, out: Path, hold: Callable[[Path], None]) -> Run | None:
    """Leave in the folder, before anything of its run, that it was begun: what stops then, the same command takes over. What it holds where
    that is the run, complete and whole."""
    lost: list[Lost] = []

    def load(folder: Path) -> Run:
        found = load_whole(folder)
        lost.extend(found.lost)
        return found.run

    _, there = open_folder(str(out), RUN_FILE, whole.settings, load, hold)
    if there and there.status == "complete" and not lost:
        return there
    empty = {"status": "running", "contenders": [], "windows": [], "batches": [], "audit": Audit(), "noise_floor": None}
    save_run(whole.model_copy(update=empty), out)
    return None


def with_windows(run: Run, folder: Path, parts: Sequence[Part], order: Sequence[int]) -> Run:
    """A run whose damaged windows were scored again by all contenders that had not failed. order: of its windows. UserError where one fails
    only now."""
    whole, keeps = Part(run, folder), tokens.has_tokens(folder)
    for part in parts:
        for contender in part.run.contenders:
            if contender.error:
                raise UserError(
                    f"{contender.label} failed while a damaged window was scored again: {contender.error}; the record is as it was: "
                    f"give the same command again, or with --drop {shlex.quote(contender.label)}"
                )
    sources = {(name, index): part for part in (whole, *parts) for name in part.rows for index in part.windows}
    again = [index for part in parts for index in part.windows]
    made = whole.windows | {index: _window(index, list(whole.rows), sources, folder, keeps) for index in again}
    run.windows = [made[index] for index in order]
    return _finished(run, folder, keeps)


def with_rows(run: Run, folder: Path, parts: Sequence[Part]) -> Run:
    """A run of which some rows were scored again, beside exact. UserError where exact has other losses by now."""
    whole, keeps = Part(run, folder), tokens.has_tokens(folder)
    exact, *names = parts[0].rows
    for part in parts:
        for index, window in part.windows.items():
            _check_alike(whole.windows[index], window, 0, 0, whole, part, exact)
    sources = {(name, index): whole for name in whole.rows for index in whole.windows}
    sources |= {(name, index): part for part in parts for name in names for index in part.windows}
    for name in names:
        row = whole.rows[name]
        label = run.contenders[row].label
        made = _joined_record(name, parts, True)
        run.contenders[row] = made.model_copy(update={"label": label})
        for entries in (run.audit.zeroed_codes_move_logits, run.audit.unmoved_by_zeroed_codes, run.audit.reads):
            entries.pop(label, None)
        found = _audit(parts, {name: label})
        run.audit.zeroed_codes_move_logits |= found.zeroed_codes_move_logits
        run.audit.unmoved_by_zeroed_codes |= found.unmoved_by_zeroed_codes
        run.audit.reads |= found.reads
    run.windows = [_window(window.index, list(whole.rows), sources, folder, keeps) for window in run.windows]
    return _finished(run, folder, keeps)


def batches_of(run: Run) -> list[list[WindowRecord]]:
    """The windows of a run that went through the model together, one batch after another."""
    windows = iter(run.windows)
    return [[next(windows) for _ in range(size)] for size in run.batches or [1] * len(run.windows)]


def _batches(parts: Sequence[Part]) -> list[list[int]]:
    """The windows of all parts, each once, in the batches in which they were scored."""
    found, taken = list[list[int]](), set[int]()
    for part in _largest_first(parts):
        for batch in batches_of(part.run):
            if left := [window.index for window in batch if window.index not in taken]:
                found.append(left)
                taken.update(left)
    return sorted(found, key=lambda batch: batch[0])


def _largest_first(parts: Iterable[Part]) -> list[Part]:
    """So that of windows of several parts those are left over that the fewest have."""
    return sorted(parts, key=lambda part: -len(part.windows))


def _joined_record(name: str, parts: Sequence[Part], with_tail: bool) -> ContenderRecord:
    """Of a contender from all parts that have it: it failed where it failed in one. with_tail: the quantile of one is that of all."""
    found = [part.run.contenders[part.rows[name]] for part in parts if name in part.rows]
    error = next((one.error for one in found if one.error), None)
    return found[0].model_copy(
        deep=True, update={"error": error} | ({} if with_tail and not error else {"kl_999": None})
    )


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
                    f"{name} has no figures for {len(missing)} window{'s' * (len(missing) > 1)} of {part}, such as {missing[0]}; score it there first"
                )
    return sources


def _check_alike(a: WindowRecord, b: WindowRecord, i: int, j: int, one: Part, other: Part, name: str) -> None:
    x, y = a.nll[i], b.nll[j]
    if math.isnan(x) != math.isnan(y):
        raise UserError(
            f"{name} has failed by window {a.index} in {one if math.isnan(x) else other}, and not in the other run: score it again there "
            "with --retry-failed, or leave that run out"
        )
    for field in () if math.isnan(x) else ROWS:
        x, y = (getattr(window, field)[row] if getattr(window, field) else None for window, row in ((a, i), (b, j)))
        if x != y and None not in (x, y):  # older records have no TVD
            raise UserError(
                f"the {SAID.get(field, 'pairs read')} of {name} in window {a.index} are {x:.9g} in {one} and {y:.9g} in {other}: they "
                "were scored in other batches, by other code or on another machine, and cannot stand in one table"
            )


def _window(
    index: int, names: Sequence[str], sources: Mapping[tuple[str, int], Part], folder: Path, keeps: bool
) -> WindowRecord:
    """A window whose rows come from several runs; one that none has is that of a row that failed. keeps: its tokens go into `folder`."""
    parts = [sources.get((name, index)) for name in names]
    found = [(part.windows[index], part.rows[name]) if part else None for part, name in zip(parts, names, strict=True)]
    there = [one for one in found if one]
    rows = {
        field: [getattr(one[0], field)[one[1]] if one else none for one in found]
        for field, none in ROWS.items()
        if all(getattr(window, field) for window, _ in there)  # older records have no TVD
    }
    made = WindowRecord(index=index, start=there[0][0].start, count=there[0][0].count, **rows)  # type: ignore[arg-type]
    if keeps:
        loaded = {part.folder: tokens.load_tokens(part.folder, index) for part in parts if part}
        some = next(iter(loaded.values()))
        stacked = {name: np.zeros((len(names), *some[name].shape[1:]), some[name].dtype) for name in some}
        for row, (part, one) in enumerate(zip(parts, found, strict=True)):
            for name, array in stacked.items():
                array[row] = loaded[part.folder][name][one[1]] if part and one else (0 if name == "top1" else np.nan)
        made.tokens = tokens.save_tokens(folder, index, stacked)
    return made


def _audit(parts: Iterable[Part], labels: Mapping[str, str]) -> Audit:
    """labels: by contender, what it is called from now on; others are left out. What several parts counted in the same window counts once."""
    audit, counted = Audit(), {name: set[int]() for name in labels}
    for part in _largest_first(parts):
        theirs = part.run.audit
        if theirs.identity_is_exact is not None:
            audit.identity_is_exact = audit.identity_is_exact is not False and theirs.identity_is_exact
        for name, row in part.rows.items():
            old, new = part.run.contenders[row].label, labels.get(name)
            if new is None:
                continue
            if old in theirs.zeroed_codes_move_logits:
                moved = theirs.zeroed_codes_move_logits[old]
                audit.zeroed_codes_move_logits[new] = audit.zeroed_codes_move_logits.get(new, True) and moved
            if old in theirs.unmoved_by_zeroed_codes:
                audit.unmoved_by_zeroed_codes[new] = theirs.unmoved_by_zeroed_codes[old]
            left = part.windows.keys() - counted[name]
            if old in theirs.reads and left:
                audit.add_reads(new, _reads_in(part, row, len(left)))
                counted[name] |= left
    return audit


def _reads_in(part: Part, row: int, count: int) -> Mapping[int, LayerReads]:
    """What a contender's layers read in so many windows of a run. A record has their sums over all windows; where each window has the same,
    that is its share. UserError where one has not. Of a row that failed nothing: it has no coverage."""
    reads, windows = part.run.audit.reads[part.run.contenders[row].label], part.windows.values()
    if count == len(windows):
        return reads
    if part.run.contenders[row].error:
        return {}
    each = {(window.pairs[row], window.key_pairs[row], window.value_pairs[row]) for window in windows}
    sums = [pairs for layer in reads.values() for pairs in (layer.pairs, layer.key, layer.value)]
    if len(each) > 1 or any(pairs % len(windows) for pairs in sums):
        raise UserError(
            f"{part} shares {len(windows) - count} windows with other runs, and not all, and {part.run.contenders[row].label} did not read "
            "equally much in each: what its layers read in the others alone no record says; merge runs of the same windows, or of windows "
            "apart"
        )
    share = {
        layer: [pairs // len(windows) * count for pairs in (one.pairs, one.key, one.value)]
        for layer, one in reads.items()
    }
    return {layer: LayerReads(pairs=pairs, key=key, value=value) for layer, (pairs, key, value) in share.items()}


def _finished(run: Run, folder: Path, keeps: bool) -> Run:
    blank_after_failure(run)
    if keeps:
        for window in run.windows:
            tokens.forget_failed(folder, window)
        if run.status == "complete":
            tokens.set_tails(run, folder)
    run.audit.failures = failures(run)
    save_run(run, folder)
    return run
