"""The analyzer's commands: measure, then show and draw what the record says. Light: imports what a command needs in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from analysis.cli.flags import Format, takes_options
from analysis.cli.starting import load_subject, note, say
from analysis.reading.escaping import markdown
from analysis.reading.selection import checked_sides, indices
from harness.options import Options

if TYPE_CHECKING:
    from analysis.reading.measurement_tables import Table
    from analysis.reading.rows import Row
    from harness.records.run import Header

analyzer = typer.Typer()
measuring = takes_options(windows=2, without=("protocol", "step"))

Schemes = Annotated[list[str] | None, typer.Option("--scheme", help="a scheme; repeatable; see `kvdelta schemes`")]
Layers = Annotated[str | None, typer.Option("--layers", help="such as 0,5,10-12; default: all")]
Style = Annotated[str | None, typer.Option("--style", help="a matplotlib style, or a .mplstyle file, for the figures")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")]


@analyzer.command()
@takes_options(windows=2, without=("protocol", "step", "same_text"))
def outliers(
    options: Options,
    layers: Layers = None,
    heads: Annotated[str | None, typer.Option("--heads", help="KV heads, such as 0,2; default: all")] = None,
    pre_rope: Annotated[bool, typer.Option("--pre-rope", help="also keys before the rotary embedding")] = False,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Which channels of K and V stand out, by layer and head: statistics and figures."""
    chosen = [indices(named) if named else None for named in (layers, heads)]
    check_style(style)
    subject = load_subject(options)
    from analysis.measuring.channel_statistics import measure_outliers
    from analysis.reading import measurement_tables, outliers
    from harness.records.measurement import measured_arrays

    record, folder = measure_outliers(
        options, subject, layers=chosen[0], heads=chosen[1], pre_rope=pre_rope, on_note=note
    )
    rows = outliers.head_rows(record, measured_arrays(folder, record))
    _show(record, rows, {"": measurement_tables.outlier_table(rows)}, format, measurement_tables.OUTLIERS)
    if format == "table":
        say(*outliers.sentences(rows))
    return _drawn(folder, style)


@analyzer.command()
@measuring
def errors(
    options: Options,
    scheme: Schemes = None,
    layers: Layers = None,
    by: Annotated[Literal["scheme", "layer", "head"], typer.Option("--by", help="what a row is of")] = "scheme",
    gradients: Annotated[bool, typer.Option(help="also the predicted loss: a backward pass a window")] = True,
    style: Style = None,
    format: Format = "table",
) -> int:
    """What schemes do to K, V and attention, by layer and head, on the suffix's real queries."""
    _check_specs(scheme)
    chosen = indices(layers) if layers else None
    check_style(style)
    subject = load_subject(options)
    from analysis.measuring.errors import measure_errors
    from analysis.reading import measurement_tables
    from analysis.reading.error_measures import error_rows
    from harness.comparison import DEFAULT_SCHEMES
    from harness.records.measurement import measured_arrays

    specs = scheme or [spec for spec in DEFAULT_SCHEMES if spec != "exact"]
    record, folder = measure_errors(specs, options, subject, layers=chosen, gradients=gradients, on_note=note)
    arrays = measured_arrays(folder, record)
    rows = error_rows(record, arrays, by)
    _show(record, rows, {"": measurement_tables.error_table(record, arrays, by)}, format, measurement_tables.ERRORS)
    return _drawn(folder, style)


@analyzer.command()
@measuring
def sensitivity(
    options: Options,
    scheme: Schemes = None,
    side: Annotated[
        list[str] | None,
        typer.Option(
            "--side",
            metavar="key|value|both",
            help="what is quantized in the layer; repeatable; default: key and value, apart",
        ),
    ] = None,
    layers: Layers = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Quantize one layer at a time, all others exact: what each layer costs, and whether the costs add up."""
    _check_specs(scheme)
    sides = checked_sides(side or ["key", "value"])
    chosen = indices(layers) if layers else None
    check_style(style)
    subject = load_subject(options)
    from analysis.measuring.sensitivity import measure_sensitivity
    from analysis.reading import ablations, measurement_tables
    from harness.records.measurement import measured_arrays

    record, folder = measure_sensitivity(
        scheme or ["kivi4"], options, subject, sides=sides, layers=chosen, on_note=note
    )
    arrays = measured_arrays(folder, record)
    rows, sums = ablations.layer_rows(record, arrays), ablations.additivity_rows(record, arrays)
    shown = {"One layer at a time": measurement_tables.sensitivity_table(rows)}
    shown["Do the layers add up?"] = measurement_tables.additivity_table(sums)
    _show(record, rows, shown, format, measurement_tables.SENSITIVITY)
    if len(record.settings.windows) < 2:
        note("1 window gives no interval; give --windows 2 or more")
    _drawn(folder, style)
    if unread := [row for row in rows if not row.read]:
        named = ", ".join(row.place for row in unread[:5])
        note(f"audit failed: the logits do not move with {named}: cache not read")
        return 3
    return 0


@analyzer.command()
def relate(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the figures; default: beside the first run")
    ] = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Which error measure tells what a layer, or a scheme, costs? Joins errors with sensitivity and compare."""
    check_style(style)
    from analysis.reading import agreement, measurement_tables
    from analysis.reading.joined import check_joins, gather
    from analysis.reading.questions import questions_of
    from analysis.reading.worked_example import worked_example

    joined = gather(runs)
    check_joins(joined)
    questions = questions_of(joined)
    for question in questions:
        if question.left_out:
            note(f"{question.title}: {question.left_out}")
    note(f"ranking the measures for {len(questions)} questions; then the figures, some seconds each")
    rankings = {question.title: agreement.ranking(question) for question in questions}
    record = joined.headers[0][1]
    rows = [row for ranking in rankings.values() for row in ranking]
    _show(
        record,
        rows,
        {title: measurement_tables.relate_table(ranking) for title, ranking in rankings.items()},
        format,
        measurement_tables.RELATE,
    )
    if format == "table":
        for question in questions:
            ceiling = agreement.agreement_of_windows(question)
            say(f"KL agrees with itself between even and odd windows at ρ = {ceiling:.2f} ({question.title}).")
        if example := worked_example(joined):
            say(example)
    from analysis.plots import figures

    where = figures.subject_line(record)
    for path in figures.draw_relations(questions, rankings, where, out or Path(runs[0]) / "figures", style):
        note(f"figure: {path}")
    return 0


@analyzer.command()
def plot(runs: Runs, style: Style = None) -> int:
    """Draw the figures of saved records again, without a model."""
    check_style(style)
    from analysis.plots import figures

    for folder in runs:
        for path in figures.draw(folder, style, note):
            note(f"figure: {path}")
    return 0


@analyzer.command()
@takes_options(windows=8, without=("protocol", "step"))
def allocate(
    options: Options,
    budget: Annotated[float, typer.Option("--budget", help="measured bits a number, over all layers, K and V")],
    scheme: Schemes = None,
    run: Annotated[
        Path | None,
        typer.Option("--from", help="a sensitivity or errors run to take the costs from; default: measured here"),
    ] = None,
    fit_windows: Annotated[int, typer.Option(help="windows to measure costs on; none of them is scored")] = 2,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Choose bits by layer and side under a budget, and verify the choice against uniform schemes of the same bits."""
    _check_specs(scheme)
    check_style(style)
    subject = load_subject(options)
    from analysis.cli.allocate import allocate_and_verify

    return allocate_and_verify(options, subject, budget, scheme, run, fit_windows, style, format)


def _check_specs(specs: list[str] | None) -> None:
    from schemes import parse_scheme

    for spec in specs or []:
        parse_scheme(spec)  # a typing error shows before anything is loaded


def check_style(style: str | None) -> None:
    if style is not None:
        from analysis import plots

        with plots.styled(style):
            pass


def _show(record: "Header", rows: "Sequence[Row]", shown: "dict[str, Table]", format: str, legend: str) -> None:
    """rows: every figure, for programs; shown: titled tables for people."""
    from analysis.cli import terminal
    from analysis.reading import measurement_tables, tables

    if format in ("json", "csv"):
        print(measurement_tables.as_text(rows, format), end="")
        return
    say(*measurement_tables.heading(record), format=format)
    for title, table in shown.items():
        if format == "md":
            print("\n".join(["", f"**{markdown(title)}**", ""] if title else [""]))
            print(tables.as_markdown(*table), end="")
        else:
            terminal.print_table(*table, title)
    if format == "table":
        print(legend)


def _drawn(folder: Path, style: str | None) -> int:
    from analysis.plots import figures

    paths = figures.draw(folder, style, note)
    note(f"record: {folder}, with {len(paths)} figures in {folder / 'figures'}")
    return 0
