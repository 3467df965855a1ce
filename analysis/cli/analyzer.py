"""Commands that measure, then show and draw what the record says. Light: imports what a command needs in it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvdelta.analysis.cli.flags import Format, Schemes, Style, check_style, takes_options
from kvdelta.analysis.cli.output import show_rows
from kvdelta.analysis.cli.starting import load_subject, note, say
from kvdelta.analysis.reading.selection import checked_sides, indices
from kvdelta.harness.options import Options

analyzer = typer.Typer()
measuring = takes_options(windows=2, without=("until_se", "protocol", "step", "drop", "time_limit"), rows=True)

Layers = Annotated[str | None, typer.Option("--layers", help="such as 0,5,10-12; default: all")]


@analyzer.command()
@takes_options(windows=2, without=("until_se", "protocol", "step", "same_text"))
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
    from kvdelta.analysis.measuring.channel_statistics import measure_outliers
    from kvdelta.analysis.reading import measurement_tables, outliers
    from kvdelta.harness.records.measurement import measured_arrays

    record, folder = measure_outliers(
        options, subject, layers=chosen[0], heads=chosen[1], pre_rope=pre_rope, on_note=note
    )
    rows = outliers.head_rows(record, measured_arrays(folder, record))
    show_rows(record, rows, {"": measurement_tables.outlier_table(rows)}, format, measurement_tables.OUTLIERS)
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
    gradients: Annotated[bool, typer.Option(help="also the predicted loss: a backward pass a batch")] = True,
    style: Style = None,
    format: Format = "table",
) -> int:
    """What schemes do to K, V and attention, by layer and head, on the suffix's real queries."""
    _check_specs(scheme)
    chosen = indices(layers) if layers else None
    check_style(style)
    subject = load_subject(options)
    from kvdelta.analysis.cli.runs import report_failed, worst
    from kvdelta.analysis.measuring.errors import measure_errors
    from kvdelta.analysis.reading import measurement_tables
    from kvdelta.analysis.reading.error_measures import error_rows
    from kvdelta.harness.comparison import DEFAULT_SCHEMES
    from kvdelta.harness.records.measurement import measured_arrays, whole_rows

    specs = scheme or [spec for spec in DEFAULT_SCHEMES if spec != "exact"]
    record, folder = measure_errors(specs, options, subject, layers=chosen, gradients=gradients, on_note=note)
    whole, arrays = whole_rows(record, measured_arrays(folder, record))
    rows = [*error_rows(whole, arrays, by), *measurement_tables.failed_rows(record)]
    shown = {"": measurement_tables.with_failed(measurement_tables.error_table(whole, arrays, by), record)}
    show_rows(record, rows, shown, format, measurement_tables.ERRORS)
    return worst([_drawn(folder, style), report_failed(record.failed)])


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
    from kvdelta.analysis.cli.ending import AUDIT_FAILED
    from kvdelta.analysis.cli.runs import report_failed
    from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
    from kvdelta.analysis.reading import ablations, measurement_tables
    from kvdelta.harness.records.measurement import measured_arrays, whole_rows

    record, folder = measure_sensitivity(
        scheme or ["kivi4"], options, subject, sides=sides, layers=chosen, on_note=note
    )
    whole, arrays = whole_rows(record, measured_arrays(folder, record))
    rows, sums = ablations.layer_rows(whole, arrays), ablations.additivity_rows(whole, arrays)
    layers_table, sums_table = measurement_tables.sensitivity_table(rows), measurement_tables.additivity_table(sums)
    shown = {"One layer at a time": measurement_tables.with_failed(layers_table, record)}
    shown["Do the layers add up?"] = sums_table
    show_rows(record, [*rows, *measurement_tables.failed_rows(record)], shown, format, measurement_tables.SENSITIVITY)
    if len(record.settings.windows) < 2:
        note("1 window gives no interval; give --windows 2 or more")
    _drawn(folder, style)
    code = report_failed(record.failed)
    if unread := [row for row in rows if not row.read]:
        named = ", ".join(row.place for row in unread[:5])
        note(f"audit failed: the logits do not move with {named}: cache not read")
        return AUDIT_FAILED
    return code


@analyzer.command()
@takes_options(windows=8, without=("until_se", "protocol", "step", "drop", "time_limit"), rows=True)
def allocate(
    options: Options,
    budget: Annotated[float, typer.Option("--budget", help="measured bits a number, over all layers, K and V")],
    scheme: Schemes = None,
    run: Annotated[
        Path | None,
        typer.Option("--from", help="a sensitivity or errors run to take the costs from; default: measured here"),
    ] = None,
    fit_windows: Annotated[int, typer.Option(help="windows to measure costs on; none of them is scored")] = 2,
    export: Annotated[
        Literal["vllm", "sglang", "modelopt", "llama.cpp", "ik_llama.cpp"] | None,
        typer.Option("--export", help="write the map as this engine reads it"),
    ] = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Choose bits by layer and side under a budget, and verify the choice against uniform schemes of the same bits."""
    _check_specs(scheme)
    check_style(style)
    if export:
        from kvdelta.analysis.cli.exporting import check_export
        from kvdelta.analysis.reading.allocation import CANDIDATES

        check_export(export, scheme or CANDIDATES)
    subject = load_subject(options)
    from kvdelta.analysis.cli.allocate import allocate_and_verify

    return allocate_and_verify(options, subject, budget, scheme, run, fit_windows, style, format, export)


def _check_specs(specs: list[str] | None) -> None:
    from kvdelta.schemes import parse_scheme

    for spec in specs or []:
        parse_scheme(spec)  # a typing error shows before anything is loaded


def _drawn(folder: Path, style: str | None) -> int:
    from kvdelta.analysis.plots import figures

    paths = figures.draw(folder, style, note)
    note(f"record: {folder}, with {len(paths)} figures in {folder / 'figures'}")
    return 0
