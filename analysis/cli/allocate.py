"""The `allocate` command: costs, choice, and a real two-pass run of the map against uniform schemes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvdelta.analysis.cli.exporting import export_map
from kvdelta.analysis.cli.output import FOR_PROGRAMS, print_rows, show_table
from kvdelta.analysis.cli.runs import make_run, report_failed, report_failures, worst
from kvdelta.analysis.cli.starting import note, say
from kvdelta.analysis.measuring.costs import candidates_of, costs_of, sizes_of
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.fitting import apart_from, fitted_text, overlap, windows_of
from kvdelta.analysis.measuring.loop import Failing, stored_places
from kvdelta.analysis.plots import figures
from kvdelta.analysis.reading import allocation, run_tables, summary, tables
from kvdelta.analysis.reading.allocating_for import choose_for
from kvdelta.analysis.reading.allocation import SIDES, Costs
from kvdelta.analysis.reading.headline import equal_bits_headline
from kvdelta.analysis.reading.rows import plain
from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.options import Options
from kvdelta.harness.records.measurement import (
    Arrays,
    Kind,
    Measurement,
    has_measurement,
    load_measurement,
    measured_arrays,
)
from kvdelta.harness.records.run import Run
from kvdelta.harness.records.writing import write_file
from kvdelta.harness.settings import settings_of
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.windows import Window
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import quoted

MAP = "the map"


def allocate_and_verify(
    options: Options,
    subject: Subject,
    budget: float,
    specs: Sequence[str] | None,
    source: Path | None,
    fit_windows: int,
    style: str | None,
    format: str,
    export: str | None = None,
) -> int:
    """Fit, choose, verify, say who wins. export: an engine that the map is written for. ValueError for records that do not fit, and
    budgets that cannot be met."""
    folder = Path(options.out) if options.out else _default_folder(options, subject, budget, specs, source)
    record, arrays, subject, fitted = _fit(options, subject, specs, source, fit_windows, folder)
    failing = Failing(candidates_of(record, specs), note)
    failing.reasons |= {label: reason for label, reason in record.failed.items() if label in failing.labels}
    candidates, sizes = sizes_of(failing, subject)
    costs = costs_of(record, arrays, candidates, sizes)
    choice, pairs = choose_for(export, costs, budget), allocation.uniform(costs, budget)
    fitted_on = fitted_text(replace(subject, windows=fitted))
    contenders = _contenders(costs, choice, pairs, fitted_on, folder)
    run, _ = make_run(contenders, replace(options, out=str(folder / "verify")), subject)
    against_exact = summary.summarize(run)
    best = allocation.best_of(against_exact[2:])
    rows = summary.summarize(run, best.scheme) if best else against_exact
    if format in FOR_PROGRAMS:
        print_rows(plain(rows), format)
    else:
        say(*run_tables.heading(run), format=format)
        say(_what_it_was_fitted_to(costs, fitted), format=format)
        show_table("Bits by layer", _bits_table(costs, choice), format)
        show_table("Verified by two passes, ΔNLL against exact", run_tables.cells(against_exact), format)
        say(*_comparisons(run, rows, best), format=format)
    bits = allocation.chosen(costs.bits, choice)
    by_side = {side: dict(zip(costs.layers, map(float, bits[:, s]), strict=True)) for s, side in enumerate(SIDES)}
    title = f"{allocation.mean_bits(costs, choice):.2f} bits by layer, fitted to {costs.measure}\n{run.model_name}"
    for path in figures.draw_allocation(by_side, title, folder / "figures", style):
        note(f"figure: {path}")
    if export:
        export_map(export, contenders[1].scheme, run.layers, folder)
    return worst([report_failures(run), report_failed(failing.reasons)])


def _what_it_was_fitted_to(costs: Costs, fitted: Sequence[Window]) -> str:
    count = f"{len(fitted)} windows" if len(fitted) > 1 else "1 window"
    tokens = ", ".join(f"{window.start}–{window.start + len(window.tokens)}" for window in fitted)
    return f"fitted to the {costs.measure} of {count} that share no token with these: tokens {tokens}"


def _comparisons(run: Run, rows: Sequence[SummaryRow], best: SummaryRow | None) -> list[str]:
    """The map against the best uniform pair, the verdict, and the map against the other pairs; rows: against the best."""
    if best is None:
        return ["There is no verdict, since no uniform pair has a score that can be believed."]
    map_row, *pairs = [rows[1], *(row for row in rows[2:] if not row.refused)]
    verdict = allocation.verdict(map_row, best.scheme, len(pairs))
    if map_row.refused:
        return [verdict]
    others = [equal_bits_headline(run, MAP, row.scheme) for row in pairs if row.scheme != best.scheme]
    return [equal_bits_headline(run, MAP, best.scheme), verdict, *others]


def _default_folder(
    options: Options, subject: Subject, budget: float, specs: Sequence[str] | None, source: Path | None
) -> Path:
    settings = settings_of(options, subject, specs or [], {"budget": budget, "from": str(source)}).model_dump_json()
    return Path("runs") / f"allocate-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def _fit(
    options: Options,
    subject: Subject,
    specs: Sequence[str] | None,
    source: Path | None,
    fit_windows: int,
    folder: Path,
) -> tuple[Measurement, Arrays, Subject, list[Window]]:
    """A record of costs, from `source` or measured on windows apart from the scored ones; the subject with the windows to
    score; and the windows that were fitted to."""
    if source is None:
        fitted = apart_from(subject.windows, options, subject, fit_windows, "to fit to")
        note(f"measuring the predicted loss on {fit_windows} windows that share no token with the scored ones")
        errors = replace(options, out=str(folder / "fit"))
        candidates = list(specs or allocation.CANDIDATES)
        record, source = measure_errors(candidates, errors, replace(subject, windows=fitted), on_note=note)
    else:
        record = _record_in(source, options, subject)
        fitted = windows_of(subject, record.settings)
        shared = [window for window in subject.windows if any(overlap(window, other) for other in fitted)]
        if shared:
            count = len(subject.windows)
            subject = replace(subject, windows=apart_from(fitted, options, subject, count, "to score"))
            note(f"{len(shared)} of the windows share tokens with those in {source}: other {count} are scored")
    if record.measured_layers != stored_places(subject)[0]:
        raise UserError(f"{source} has only some of the model's layers; measure it again without --layers")
    return record, measured_arrays(source, record), subject, fitted


def _record_in(source: Path, options: Options, subject: Subject) -> Measurement:
    kinds: list[Kind] = ["sensitivity", "errors"]
    kind: Kind | None = next((one for one in kinds if has_measurement(source, one)), None)
    if kind is None:
        raise UserError(f"{source} holds neither sensitivity.json nor errors.json; name the folder of such a run")
    record = load_measurement(source, kind)
    mine = settings_of(options, subject, [])
    for name in ("model", "text_sha256", "window_length", "score_length", "bos_token_id"):
        a, b = getattr(record.settings, name), getattr(mine, name)
        if a != b:
            raise UserError(f"{source} does not fit this command: {name} is {a} there and {b} here")
    return record


def _contenders(
    costs: Costs, choice: np.ndarray, pairs: list[tuple[int, int]], fitted_on: Mapping[str, Any], folder: Path
) -> list[SchemeContender]:
    """exact, the map, then the uniform pairs; maps are files, so that `compare --scheme @FILE` scores them again."""
    folder.mkdir(parents=True, exist_ok=True)

    def of_file(label: str, name: str, content: str) -> SchemeContender:
        path = folder / "maps" / name
        write_file(path, content.encode())
        return SchemeContender(label, parse_scheme(f"@{quoted(str(path))}"))

    contenders = [SchemeContender.of("exact")]
    contenders.append(of_file(MAP, "map.json", allocation.map_file(costs, choice, [fitted_on])))
    for label, (key, value) in zip(allocation.pair_labels(costs, pairs), pairs, strict=True):
        if key == value:
            contenders.append(SchemeContender.of(label))
        else:
            name = f"uniform-{key}-{value}.json"
            contenders.append(of_file(label, name, allocation.uniform_file(costs, (key, value))))
    return contenders


def _bits_table(costs: Costs, choice: np.ndarray) -> tables.Table:
    """Measured bits: a row a side, a column a layer."""
    header = ["layer", *map(str, costs.layers)]
    bits = allocation.chosen(costs.bits, choice)
    body = [[name, *(f"{number:.3g}" for number in bits[:, s])] for s, name in enumerate("KV")]
    return header, body
