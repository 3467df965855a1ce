"""The `allocate` command: costs, choice, and a real two-pass run of the map against uniform schemes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.cli import terminal
from analysis.cli.runs import make_run, report_failures
from analysis.cli.starting import note, say
from analysis.measuring.costs import costs_of
from analysis.measuring.errors import measure_errors
from analysis.measuring.loop import stored_places
from analysis.plots import figures
from analysis.reading import allocation, measurement_tables, run_tables, summary, tables
from analysis.reading.allocation import SIDES, Costs
from harness.caches.contenders import Contender, SchemeContender
from harness.leaks import check_texts, seen_text
from harness.options import Options
from harness.records.measurement import Kind, has_measurement, load_measurement, measured_arrays
from harness.records.writing import write_file
from harness.settings import settings_of
from harness.subject.prepared import Subject
from harness.subject.probing import kv_shapes
from harness.subject.windows import Window, cut_windows
from schemes import parse_scheme
from schemes.errors import UserError
from schemes.references import quoted

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
) -> int:
    """Fit, choose, verify, say who wins. ValueError for records that do not fit, and budgets that cannot be met."""
    folder = Path(options.out) if options.out else _default_folder(options, subject, budget, specs, source)
    costs, subject, fitted_on = _costs(options, subject, specs, source, fit_windows, folder)
    check_texts([SchemeContender.of(spec) for spec in costs.candidates], options, subject)
    choice = allocation.choose(costs, budget)
    pairs = allocation.uniform(costs, budget)
    contenders = _contenders(costs, choice, pairs, folder, fitted_on)
    # same_text: the map has seen other windows of this text, by design
    run, _ = make_run(contenders, replace(options, out=str(folder / "verify"), same_text=True), subject)
    against = run.contenders[2].label
    rows = summary.summarize(run, against)
    named = {row.scheme: row for row in rows}
    if format in ("json", "csv"):
        print(measurement_tables.as_text(rows, format), end="")
    else:
        say(*run_tables.heading(run), format=format)
        fitted = f"{len(costs.windows)} other windows" if len(costs.windows) > 1 else "1 other window"
        say(f"fitted to the {costs.measure} of {fitted}: {', '.join(map(str, costs.windows))}", format=format)
        _print("Bits by layer", _bits_table(costs, choice), format)
        _print("Verified by two passes, ΔNLL against exact", run_tables.cells(summary.summarize(run)), format)
        say(summary.equal_bits_headline(run, MAP, against), format=format)
        say(allocation.verdict(named, MAP, against), format=format)
        for contender in run.contenders[3:]:
            say(summary.equal_bits_headline(run, MAP, contender.label), format=format)
    by_side = {
        side: {layer: float(costs.bits[s, choice[at, s]]) for at, layer in enumerate(costs.layers)}
        for s, side in enumerate(SIDES)
    }
    title = f"{allocation.mean_bits(costs, choice):.2f} bits by layer, fitted to {costs.measure}\n{run.model_name}"
    for path in figures.draw_allocation(by_side, title, folder / "figures", style):
        note(f"figure: {path}")
    return report_failures(run)


def _default_folder(
    options: Options, subject: Subject, budget: float, specs: Sequence[str] | None, source: Path | None
) -> Path:
    settings = settings_of(options, subject, specs or [], {"budget": budget, "from": str(source)}).model_dump_json()
    return Path("runs") / f"allocate-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def _costs(
    options: Options,
    subject: Subject,
    specs: Sequence[str] | None,
    source: Path | None,
    fit_windows: int,
    folder: Path,
) -> tuple[Costs, Subject, dict[str, str]]:
    """Costs from the record, or measured on windows that are not scored; the windows to score; and what was seen."""
    model = subject.loaded.model
    if source is None:
        fit = _others(options, subject, {window.index for window in subject.windows}, fit_windows)
        seen = replace(subject, windows=fit)
        note(f"measuring the predicted loss on {fit_windows} windows that are not scored")
        errors = replace(options, out=str(folder / "fit"))
        candidates = list(specs or allocation.CANDIDATES)
        record, source = measure_errors(candidates, errors, seen, on_note=note)
    else:
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
        measured = _grid(replace(options, stride=record.settings.stride), subject)
        seen = replace(subject, windows=[measured[index] for index in record.settings.windows])
        if fitted := set(record.settings.windows) & {window.index for window in subject.windows}:
            count = len(subject.windows)
            subject = replace(subject, windows=_others(options, subject, set(record.settings.windows), count))
            note(f"{len(fitted)} of the windows are in {source}: other {count} are scored")
    if record.measured_layers != stored_places(subject)[0]:
        raise UserError(f"{source} has only some of the model's layers; measure it again without --layers")
    arrays = measured_arrays(source, record)
    channels = next(iter(kv_shapes(model).values())).key_channels
    return costs_of(record, arrays, specs, channels), subject, seen_text(seen)


def _others(options: Options, subject: Subject, taken: set[int], count: int) -> list[Window]:
    """`count` windows of the text that are not among those taken, spread evenly."""
    free = [window for window in _grid(options, subject) if window.index not in taken]
    if not 1 <= count <= len(free):
        raise UserError(
            f"{count} more windows are asked for, beside {len(taken)}; the text has {len(free)} others; take fewer windows"
        )
    return [free[(2 * i + 1) * len(free) // (2 * count)] for i in range(count)]


def _grid(options: Options, subject: Subject) -> list[Window]:
    """All windows of the text."""
    return cut_windows(
        subject.tokens,
        window_length=options.window_length,
        score_length=options.score_length,
        stride=options.stride,
        windows=None,
        bos_token_id=subject.bos_token_id,
    )


def _contenders(
    costs: Costs, choice: np.ndarray, pairs: list[tuple[int, int]], folder: Path, fitted_on: dict[str, str]
) -> list[Contender]:
    """exact, the map, then the uniform schemes; maps are files, so that `compare --scheme @FILE` scores them again."""

    def written(name: str, content: str) -> str:
        path = folder / "maps" / name
        write_file(path, content.encode())
        return f"@{quoted(str(path))}"

    contenders: list[Contender] = [SchemeContender.of("exact")]
    spec = written("map.json", allocation.map_file(costs, choice, fitted_on))
    contenders.append(SchemeContender(MAP, parse_scheme(spec)))
    for key, value in pairs:
        label = costs.candidates[key]
        if key != value:
            label = f"K {costs.bits[0, key]:.2f} b, V {costs.bits[1, value]:.2f} b"
            spec = written(f"uniform-{key}-{value}.json", allocation.uniform_file(costs, (key, value)))
            contenders.append(SchemeContender(label, parse_scheme(spec)))
        else:
            contenders.append(SchemeContender.of(label))
    return contenders


def _bits_table(costs: Costs, choice: np.ndarray) -> tables.Table:
    """Measured bits: a row a side, a column a layer."""
    header = ["layer", *map(str, costs.layers)]
    body = [[name, *(f"{costs.bits[s, c]:.3g}" for c in choice[:, s])] for s, name in enumerate("KV")]
    return header, body


def _print(title: str, table: tables.Table, format: str) -> None:
    if format == "md":
        print(f"\n**{title}**\n\n{tables.as_markdown(*table)}", end="")
    else:
        terminal.print_table(*table, title)
