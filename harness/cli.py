"""`kvdelta`: the composition root, and the one module that may import analysis."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.flags import takes_options
from harness.loading import import_quickly, load_factory
from harness.options import Options

if TYPE_CHECKING:
    from harness.comparison import Subject
    from harness.records import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
reproduce = typer.Typer(no_args_is_help=True, help="Reproduce a published comparison.")
app.add_typer(reproduce, name="reproduce")

AUDIT_FAILED = 3
STARTED = time.perf_counter()

Format = Annotated[Literal["table", "md", "json", "csv"], typer.Option("--format", help="of the result on stdout")]
Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="SCHEME", help="give the deltas against this scheme, not exact")
]


@app.command()
@takes_options()
def compare(
    options: Options,
    scheme: Annotated[
        list[str] | None, typer.Option("--scheme", help="a scheme to score; repeatable; see `kvdelta schemes`")
    ] = None,
    format: Format = "table",
    baseline: Baseline = None,
) -> int:
    """Score schemes on the same windows, with a cache that is read."""
    from schemes import parse_scheme

    for spec in scheme or []:
        parse_scheme(spec)  # a typing error shows before anything is loaded
    import_quickly()
    from harness.comparison import DEFAULT_SCHEMES, contenders_of

    contenders = contenders_of(scheme or DEFAULT_SCHEMES, _note)
    if baseline is not None and parse_scheme(baseline).name not in [contender.name for contender in contenders]:
        raise ValueError(f"--baseline {baseline} is not among the schemes of this run; add --scheme {baseline}")
    run, folder = _score(contenders, options, _prepare(options))
    _show(run, folder, format, baseline)
    return _verdict(run)


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")],
    baseline: Baseline = None,
    format: Format = "table",
) -> int:
    """Print the table of saved runs, any scheme against any other."""
    from harness import records

    codes = []
    for folder in runs:
        run = records.load(folder)
        if not run.windows:
            raise ValueError(f"{folder} has no finished window yet; give its command again to go on: {run.command}")
        if run.status != "complete":
            _note(f"{folder} is not complete: {len(run.windows)} of {len(run.settings.windows)} windows")
        _show(run, folder, format, baseline)
        codes.append(_verdict(run))
    return max(codes)


@app.command("schemes")
def list_schemes(format: Format = "table") -> int:
    """List every scheme with its fields, defaults, source and measured bits."""
    from analysis.catalogue import listing

    print(listing(format))
    return 0


@reproduce.command("trap")
@takes_options(windows=4, without=("protocol", "step"))
def reproduce_trap(options: Options) -> int:
    """Show why a single pass cannot tell an 8-bit cache from a 2-bit one."""
    subject = _prepare(options)
    from analysis import reproduced, tables
    from harness import terminal
    from harness.reproduce import trap_contenders, trap_verdict

    runs = []
    for protocol in ("single-pass", "two-pass"):
        _note(f"{protocol}:")
        out = str(Path(options.out) / protocol) if options.out else None
        runs.append(_score(trap_contenders(), replace(options, protocol=protocol, out=out), subject)[0])
    print(*tables.heading(runs[1])[:2], sep="\n")
    terminal.print_table(*reproduced.trap_table(*runs))
    shown, sentences = trap_verdict(*runs)
    print(*sentences, sep="\n")
    return 0 if shown else AUDIT_FAILED


@reproduce.command("kivi-vs-int4")
@takes_options()
def reproduce_kivi(options: Options) -> int:
    """KIVI against naive INT4: the published settings, the grid of axes and bits, and one change at a time."""
    subject = _prepare(options)
    from analysis import reproduced, summary, tables
    from harness import terminal
    from harness.comparison import contenders_of
    from harness.reproduce import EQUAL_BITS, kivi_specs

    run, _ = _score(contenders_of(kivi_specs()), options, subject)
    print(*tables.heading(run), sep="\n")
    for title, table in reproduced.kivi_tables(run).items():
        terminal.print_table(*table, title)
    print(summary.equal_bits_headline(run, *EQUAL_BITS))
    return _verdict(run)


@app.command()
@takes_options(windows=1)
def audit(
    options: Options,
    cache: Annotated[str, typer.Option("--cache", help="module:factory; factory(model.config) returns a cache")],
    format: Format = "table",
) -> int:
    """Does a scored forward read this cache? Any `past_key_values` factory, beside exact."""
    factory = load_factory(cache)
    subject = _prepare(options)
    from harness.comparison import contenders_of
    from harness.contenders import ForeignContender

    run, folder = _score(contenders_of([ForeignContender(cache, factory)]), options, subject)
    _show(run, folder, format, None)
    if not run.audit.failures:
        _note(f"audit passed: the scored forward read what {cache} had stored")
    return _verdict(run)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _prepare(options: Options) -> "Subject":
    """Model, text and windows; says how long that took since the command began."""
    import_quickly()
    from harness.comparison import prepare

    subject = prepare(options)
    _note(f"loaded {subject.loaded.name} and {subject.text.name} in {time.perf_counter() - STARTED:.1f} s")
    return subject


def _score(contenders: Any, options: Options, subject: "Subject") -> tuple["Run", Path]:
    """Run, with progress on stderr; the record gets its summary, which analysis knows to make."""
    from analysis.summary import summarize
    from analysis.tables import finite
    from harness import comparison, records, terminal

    progress = terminal.progress(len(subject.windows), len(contenders))
    run, folder = comparison.compare(contenders, options, subject=subject, progress=progress)
    run.summary = finite(summarize(run, nll=records.load_nll(folder, run)))
    records.save(run, folder)
    _note(f"record: {folder}")
    return run, folder


def _show(run: "Run", folder: Path, format: str, baseline: str | None) -> None:
    from analysis import summary, tables
    from harness import records

    position = summary.find(run, baseline) if baseline else 0
    nll = records.load_nll(folder, run) if format == "json" and records.has_tokens(folder) else None
    rows = summary.summarize(run, baseline, nll)
    if format == "table":
        from harness import terminal

        print(*tables.heading(run), sep="\n")
        terminal.print_table(*tables.cells(rows, position))
        print(tables.LEGEND)
    else:
        print(tables.as_text(run, rows, position, format), end="")


def _verdict(run: "Run") -> int:
    """Say which rows cannot be believed; the exit code."""
    for label, reasons in run.audit.failures.items():
        _note(f"audit failed: {label}: {'; '.join(reasons)}")
    return AUDIT_FAILED if run.audit.failures else 0


def main() -> None:
    """Exit codes: 0 done, 2 user error (one line), 3 audit failed."""
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if isinstance(error, ValueError):
            _note(f"kvdelta: {error}")
        elif hasattr(error, "format_message"):  # click's usage errors
            _note(f"kvdelta: {error.format_message()}")  # type: ignore[attr-defined]
        else:
            raise
        code = 2
    except KeyboardInterrupt:
        _note("\nkvdelta: interrupted; finished windows are kept: the same command goes on")
        code = 130
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
