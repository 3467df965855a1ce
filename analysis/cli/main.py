"""`kvdelta`: the composition root, and the one module that may import analysis."""

import io
import os
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

try:
    import typer
except ModuleNotFoundError as error:  # a checkout on the path, in an environment that it was not installed in
    said = f"kvdelta: {error.name} is not installed in {sys.prefix}; in the checkout of kvdelta give"
    print(said, Path(sys.executable).name, "-m pip install -e .", file=sys.stderr)
    sys.exit(2)

from analysis.cli.analyzer import analyzer
from analysis.cli.bench import bench
from analysis.cli.ending import AUDIT_FAILED, ROW_FAILED, exit_code
from analysis.cli.flags import Format, Style, check_style, takes_options
from analysis.cli.from_records import from_records
from analysis.cli.replay import replaying, show_replay
from analysis.cli.starting import load_subject, note, say
from harness.options import Options
from harness.processes import rank
from harness.subject.imports import import_quickly
from schemes.errors import UserError
from schemes.references import identity_of

if TYPE_CHECKING:
    from harness.records.run import Run

FACTORY = "module:factory or 'module:factory(window=64)'; factory(model.config, …) returns it"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
reproduce = typer.Typer(no_args_is_help=True, help="Reproduce a published comparison.")
app.add_typer(reproduce, name="reproduce")
app.add_typer(bench, name="bench")

Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="SCHEME", help="give the deltas against this scheme, not exact")
]

Sort = Annotated[
    Literal["run", "bits", "kl"], typer.Option("--sort", help="rows as given, by measured bits (most first), or by KL")
]


@app.command()
@takes_options(without=(), shared=True)
def compare(
    options: Options,
    scheme: Annotated[
        list[str] | None, typer.Option("--scheme", help="a scheme to score; repeatable; see `kvdelta schemes`")
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option("--cache", metavar="FACTORY", help=f"a cache beside them, {FACTORY}; repeatable")
    ] = None,
    format: Format = "table",
    baseline: Baseline = None,
    sort: Sort = "run",
) -> int:
    """Score schemes on the same windows, with a cache that is read."""
    from harness.caches.specs import canonical

    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    import_quickly()
    from harness.caches.contenders import contenders_of
    from harness.caches.foreign import user_cache
    from harness.comparison import DEFAULT_SCHEMES

    contenders = contenders_of([*(scheme or DEFAULT_SCHEMES), *map(user_cache, cache or [])], note)
    known = [name for contender in contenders for name in (identity_of(contender.name), contender.label)]
    if baseline is not None and baseline not in known and identity_of(canonical(baseline)) not in known:
        raise UserError(f"--baseline {baseline} is not among the schemes of this run; add --scheme {baseline}")
    from analysis.cli.runs import make_run, report_failures

    run, folder = make_run(contenders, options, load_subject(options))
    _show(run, folder, format, baseline, sort)
    return report_failures(run)


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")],
    baseline: Baseline = None,
    sort: Sort = "run",
    format: Format = "table",
) -> int:
    """Print the table of saved runs, any scheme against any other."""
    from analysis.cli.runs import report_failures, worst
    from harness.records.replay import has_replay
    from harness.records.run import load_run

    codes = []
    for folder in runs:
        if has_replay(folder):
            codes.append(show_replay(folder, format))
            continue
        run = load_run(folder)
        if run.status != "complete":
            note(f"{folder} is not complete: {len(run.windows)} of {len(run.settings.windows)} windows")
        _show(run, folder, format, baseline, sort)
        codes.append(report_failures(run))
    return worst(codes)


@app.command("schemes")
def list_schemes(
    detail: Annotated[str | None, typer.Option("--detail", metavar="NAME", help="explain one scheme")] = None,
    format: Format = "table",
) -> int:
    """List every scheme with its fields, defaults, source and measured bits."""
    from analysis.cli import catalogue

    print(catalogue.detail(detail) if detail else catalogue.listing(format))
    return 0


@app.command()
@takes_options(without=("until_se", "protocol", "step", "seed", "same_text"))
def calibrate(
    options: Options,
    scheme: Annotated[str, typer.Option("--scheme", help="a scheme that is calibrated, such as kvquant:bits=3")],
    weights: Annotated[
        Literal["gradient", "one"],
        typer.Option("--weights", help="how much an error of a number counts: its squared gradient, or 1"),
    ] = "gradient",
) -> int:
    """Calibrate a scheme on a text; --out names the file that the scheme is then given."""
    if options.out is None:
        raise UserError("calibrate writes a file: name it with --out, such as --out kvquant3.safetensors")
    from schemes.registry import calibrated_family

    calibrated_family(scheme)  # a typing error shows before anything is loaded
    subject = load_subject(options)
    from harness import calibration

    path = calibration.calibrate(scheme, subject, options.out, weights, note)
    note(f"calibrated on {subject.text.name}; score it with:")
    say(f"kvdelta compare --scheme {shlex.quote(calibration.spec_with(scheme, path))}")
    return 0


@reproduce.command("trap")
@takes_options(windows=4, without=("until_se", "protocol", "step", "same_text"), shared=True)
def reproduce_trap(options: Options) -> int:
    """Show why a single pass cannot tell an 8-bit cache from a 2-bit one."""
    subject = load_subject(options)
    from analysis.cli import terminal
    from analysis.cli.runs import make_run
    from analysis.cli.trap_contenders import trap_contenders
    from analysis.reading import run_tables, summary
    from analysis.reading.trap import trap_table, trap_verdict

    runs = []
    for protocol in ("single-pass", "two-pass"):
        note(f"{protocol}:")
        out = str(Path(options.out) / protocol) if options.out else None
        runs.append(make_run(trap_contenders(), replace(options, protocol=protocol, out=out), subject)[0])
    say(*run_tables.heading(runs[1])[:2])
    terminal.print_table(*trap_table(*runs))
    say(*run_tables.notes(summary.summarize(runs[1])))
    shown, sentences = trap_verdict(*runs)
    say(*sentences)
    return 0 if shown else AUDIT_FAILED


@reproduce.command("kivi-vs-int4")
@takes_options(without=("until_se", "protocol", "step", "same_text"))
def reproduce_kivi(options: Options, style: Style = None) -> int:
    """KIVI against naive INT4: settings, grid, one change at a time, and a report that explains them."""
    check_style(style)
    subject = load_subject(options)
    from analysis.cli.kivi_report import kivi_report

    return kivi_report(options, subject, style)


@app.command()
@takes_options(
    windows=1,
    without=(
        "until_se",
        "same_text",
    ),
)
def audit(
    options: Options,
    cache: Annotated[str, typer.Option("--cache", metavar="FACTORY", help=FACTORY)],
    format: Format = "table",
) -> int:
    """Does a scored forward read this cache? Whatever a factory makes for the model, beside exact."""
    import_quickly()
    from analysis.cli.runs import make_run, report_failures
    from harness.caches.contenders import contenders_of
    from harness.caches.foreign import user_cache

    run, folder = make_run(contenders_of([user_cache(cache)]), options, load_subject(options))
    _show(run, folder, format)
    if not run.audit.failures:
        note(f"audit passed: the scored forward read what {cache} had stored")
    return report_failures(run)


app.registered_commands += [
    *analyzer.registered_commands,
    *from_records.registered_commands,
    *replaying.registered_commands,
]


def _show(run: "Run", folder: Path, format: str, baseline: str | None = None, sort: str = "run") -> None:
    from analysis.reading import run_tables, summary
    from harness.records.run import has_tokens, load_each

    position = summary.find(run, baseline) if baseline else 0
    nll = load_each(folder, run, "nll") if format == "json" and has_tokens(folder) else None
    rows, position = run_tables.in_order(summary.summarize(run, baseline, nll), position, sort)
    if format == "table":
        from analysis.cli import terminal

        say(*run_tables.heading(run))
        terminal.print_table(*run_tables.cells(rows, position))
        print(run_tables.LEGEND)
        if lines := run_tables.notes(rows):
            say("", *lines)
    else:
        print(run_tables.as_text(run, rows, position, format), end="")


def main() -> None:
    """Exit codes: 0 done, 2 user error (one line), 3 audit failed (a row may have failed too), 4 a row failed, 130
    interrupted. Of several processes the first prints, and ends with 3 or 4: a launcher stops all when one of them does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Δ that a terminal's encoding has not ends no run
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
        code = exit_code(app)
    sys.exit(0 if rank() and code in (AUDIT_FAILED, ROW_FAILED) else code)


if __name__ == "__main__":
    main()
