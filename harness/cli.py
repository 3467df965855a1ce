"""`kvdelta`: the composition root, and the one module that may import analysis."""

import importlib
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
reproduce = typer.Typer(no_args_is_help=True, help="Reproduce a published comparison.")
app.add_typer(reproduce, name="reproduce")

AUDIT_FAILED = 3

ModelOption = Annotated[
    str | None, typer.Option("--model", help="hub id, local folder or GGUF file; default: packaged")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="revision of a hub id")]
TextOption = Annotated[
    str | None, typer.Option("--text", help="wikitext-2, a text file, or wikipedia-excerpt (the default)")
]
WindowsOption = Annotated[str, typer.Option("--windows", help="how many windows, or all")]
WindowLengthOption = Annotated[int, typer.Option("--window-length", help="tokens of a window")]
ScoreLengthOption = Annotated[int, typer.Option("--score-length", help="tokens of the suffix that reads the cache")]
StrideOption = Annotated[int | None, typer.Option("--stride", help="tokens between windows; default: score length")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="two-pass, stepwise or single-pass")]
StepOption = Annotated[int | None, typer.Option("--step", help="tokens per forward in stepwise")]
BosOption = Annotated[str, typer.Option("--bos", help="auto, always or never")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, …; default: cuda where there is one")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float16 (default on GPU), float32 (CPU), bfloat16")]
SeedOption = Annotated[int, typer.Option("--seed", help="of the bootstrap and of random schemes")]
OutOption = Annotated[str | None, typer.Option("--out", help="run folder; default: runs/, named by the settings")]
FormatOption = Annotated[str, typer.Option("--format", help="table, md, json or csv")]
BaselineOption = Annotated[str | None, typer.Option("--baseline", help="give the deltas against this scheme")]


def _windows(text: str) -> int | None:
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--windows {text!r}: give a whole number, or all") from None


def _check_format(format: str) -> None:
    if format not in ("table", "md", "json", "csv"):
        raise ValueError(f"--format {format!r}: choose table, md, json or csv")


def _command() -> str:
    return shlex.join(["kvdelta", *sys.argv[1:]])


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _progress(total_windows: int, passes: int) -> Any:
    """Lines on stderr: window, scheme, running perplexity and time left; one line redrawn on a terminal."""
    import math

    from harness.runner import Progress

    started, losses, seen = time.monotonic(), {}, [0, None]

    def on_pass(window: int, contender: int, label: str, nll: float) -> None:
        if seen[1] is None:
            seen[1] = window
        seen[0] += 1
        losses.setdefault(label, []).append(nll)
        left = (total_windows - seen[1]) * passes - seen[0]
        eta = (time.monotonic() - started) / seen[0] * left
        ppl = math.exp(min(700.0, sum(losses[label]) / len(losses[label])))
        line = f"window {window + 1}/{total_windows}  {label}  ppl {ppl:.3f}  about {eta / 60:.0f} min {eta % 60:.0f} s left"
        if sys.stderr.isatty():
            end = "\n" if left == 0 else ""
            print(f"\r\x1b[2K{line}", end=end, file=sys.stderr, flush=True)
        elif contender == passes - 1:
            _note(line)

    return Progress(on_pass, _note)


def _print_table(header: list[str], body: list[list[str]], title: str = "") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for row in body:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _show(run: Any, format: str, baseline: str | None) -> None:
    from analysis import tables

    rows = tables.summarize(run, baseline)
    position = tables.find(run, baseline) if baseline else 0
    if format == "csv":
        print(tables.as_csv(rows), end="")
    elif format == "json":
        print(tables.as_json(run, rows, baseline), end="")
    elif format == "md":
        print("\n".join(tables.heading(run)) + "\n\n" + tables.as_markdown(rows, position), end="")
    else:
        print("\n".join(tables.heading(run)))
        _print_table(*tables.cells(rows, position))
    for label, reasons in run.audit.failures.items():
        _note(f"audit failed: {label}: {'; '.join(reasons)}")


def _score(schemes: Any, options: Any, format: str, baseline: str | None) -> int:
    from analysis import tables
    from harness import records
    from harness.comparison import compare as run_compare
    from harness.comparison import contenders_of, prepare

    if baseline is not None:
        labels = [name for c in contenders_of(schemes) for name in (c.label, c.name)]
        if baseline not in labels:
            raise ValueError(f"--baseline {baseline!r} is not among the schemes of this run; add --scheme {baseline}")
    subject = prepare(options)
    count = len(contenders_of(schemes))
    progress = _progress(len(subject.windows), count)
    run, folder = run_compare(schemes, options, subject=subject, progress=progress)
    run.summary = [{k: tables._plain(v) for k, v in row.items()} for row in tables.summarize(run)]
    records.save(run, folder)
    _show(run, format, baseline)
    _note(f"record: {folder}")
    return AUDIT_FAILED if run.audit.failures else 0


@app.command()
def compare(
    scheme: Annotated[list[str] | None, typer.Option("--scheme", help="a spec; repeatable")] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    text: TextOption = None,
    windows: WindowsOption = "8",
    window_length: WindowLengthOption = 2048,
    score_length: ScoreLengthOption = 512,
    stride: StrideOption = None,
    protocol: ProtocolOption = "two-pass",
    step: StepOption = None,
    bos: BosOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    format: FormatOption = "table",
    baseline: BaselineOption = None,
) -> int:
    """Score schemes on the same windows with a cache that is read."""
    _check_format(format)
    from schemes import parse_scheme

    for spec in scheme or []:
        parse_scheme(spec)  # before anything is loaded
    from harness.comparison import DEFAULT_SCHEMES, Options

    options = Options(
        model, revision, text, _windows(windows), window_length, score_length, stride, protocol, step, bos, device,
        dtype, seed, out, _command(),
    )  # fmt: skip
    return _score(scheme or list(DEFAULT_SCHEMES), options, format, baseline)


@app.command()
def show(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="run folders")],
    baseline: BaselineOption = None,
    format: FormatOption = "table",
) -> int:
    """Print the table of saved runs, any scheme against any other."""
    _check_format(format)
    from harness.records import load

    failed = False
    for folder in runs:
        run = load(folder)
        if not run.windows:
            raise ValueError(f"{folder} has no finished window yet; give its command again to go on: {run.command}")
        if run.status != "complete":
            _note(f"{folder} is not complete: {len(run.windows)} of {len(run.settings.windows)} windows")
        _show(run, format, baseline)
        failed = failed or bool(run.audit.failures)
    return AUDIT_FAILED if failed else 0


@app.command("schemes")
def list_schemes(format: FormatOption = "table") -> int:
    """List every scheme with its fields, defaults, source and measured bits."""
    _check_format(format)
    from analysis.catalogue import catalogue

    header, body = catalogue()
    if format == "json":
        import json

        print(json.dumps([dict(zip(header, row, strict=True)) for row in body], indent=1))
    elif format == "csv":
        import csv

        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *body])
    elif format == "md":
        lines = ["| " + " | ".join(row) + " |" for row in [header, *body]]
        lines.insert(1, "|" + "---|" * len(header))
        print("\n".join(lines))
    else:
        for row in body:
            print(
                f"{row[0]}\n"
                + "\n".join(f"    {name}: {text}" for name, text in list(zip(header, row, strict=True))[1:])
            )
    return 0


@reproduce.command("trap")
def reproduce_trap(
    model: ModelOption = None,
    revision: RevisionOption = None,
    text: TextOption = None,
    windows: WindowsOption = "4",
    window_length: WindowLengthOption = 2048,
    score_length: ScoreLengthOption = 512,
    stride: StrideOption = None,
    bos: BosOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> int:
    """Show why a single pass cannot tell an 8-bit cache from a 2-bit one."""
    from analysis import tables
    from harness.comparison import Options, prepare
    from harness.comparison import compare as run_compare
    from harness.reproduce import trap_contenders, trap_sentence

    options = Options(
        model, revision, text, _windows(windows), window_length, score_length, stride, "two-pass", None, bos, device,
        dtype, seed, out, _command(),
    )  # fmt: skip
    subject = prepare(options)
    contenders = trap_contenders()
    found = {}
    for protocol in ("single-pass", "two-pass"):
        place = str(Path(out) / protocol) if out else None
        progress = _progress(len(subject.windows), len(contenders))
        _note(f"{protocol}:")
        found[protocol], _ = run_compare(
            contenders, replace(options, protocol=protocol, out=place), subject=subject, progress=progress
        )
    single, two = found["single-pass"], found["two-pass"]
    rows = {name: tables.perplexities(run) for name, run in found.items()}
    print(tables.heading(two)[0].replace(", two-pass", ""))
    body = []
    for i, contender in enumerate(two.contenders):
        change = "" if i == 0 else f" ({100 * (rows['two-pass'][i] / rows['two-pass'][0] - 1):+.2f} %)"
        body.append([contender.label, repr(rows["single-pass"][i]), f"{rows['two-pass'][i]:.4f}{change}"])
    _print_table(["cache", "perplexity, single pass", "perplexity, two passes"], body)
    losses = {name: [sum(w.nll[i] for w in run.windows) for i in range(len(contenders))] for name, run in found.items()}
    ok, sentence = trap_sentence(losses["single-pass"], losses["two-pass"])
    print(sentence)
    gap = rows["single-pass"][0] - rows["single-pass"][1]
    why = "no difference" if gap == 0 else "round-off of another cache class"
    print(f"Single pass, exact minus quantized: {gap:.2e} in perplexity ({why}).")
    del single
    return 0 if ok else AUDIT_FAILED


@reproduce.command("kivi-vs-int4")
def reproduce_kivi(
    model: ModelOption = None,
    revision: RevisionOption = None,
    text: TextOption = None,
    windows: WindowsOption = "8",
    window_length: WindowLengthOption = 2048,
    score_length: ScoreLengthOption = 512,
    stride: StrideOption = None,
    protocol: ProtocolOption = "two-pass",
    step: StepOption = None,
    bos: BosOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> int:
    """KIVI against naive INT4: the grid of axes and bits, the published settings, and a ladder of single changes."""
    from analysis import tables
    from harness.comparison import Options, prepare
    from harness.comparison import compare as run_compare
    from harness.reproduce import LADDER_SPECS, PUBLISHED_SPECS, grid_specs, kivi_specs

    options = Options(
        model, revision, text, _windows(windows), window_length, score_length, stride, protocol, step, bos, device,
        dtype, seed, out, _command(),
    )  # fmt: skip
    subject = prepare(options)
    specs = kivi_specs()
    progress = _progress(len(subject.windows), len(specs))
    run, folder = run_compare(specs, options, subject=subject, progress=progress)
    rows = tables.summarize(run)
    print("\n".join(tables.heading(run)))
    for title, names in (
        ("Published settings", ["exact", *PUBLISHED_SPECS]),
        ("Grid: asymmetric, groups of 32", ["exact", *grid_specs()]),
        ("Ladder: one change at a time", ["exact", *LADDER_SPECS.values()]),
    ):
        picked = [rows[tables.find_same(run, name)] for name in names]
        header, body = tables.cells(picked)
        if title.startswith("Ladder"):
            for row, step_name in zip(body[1:], LADDER_SPECS, strict=True):
                row[0] += f"  {step_name}"
        _print_table(header, body, title)
    print(tables.equal_bits_headline(run, "int4:group_size=16", "asym4:group_size=32,key_axis=channel"))
    _note(f"record: {folder}")
    return AUDIT_FAILED if run.audit.failures else 0


@app.command()
def audit(
    cache: Annotated[str, typer.Option("--cache", help="module:factory; factory(model.config) returns a cache")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    text: TextOption = None,
    windows: WindowsOption = "1",
    window_length: WindowLengthOption = 2048,
    score_length: ScoreLengthOption = 512,
    stride: StrideOption = None,
    protocol: ProtocolOption = "two-pass",
    step: StepOption = None,
    bos: BosOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    format: FormatOption = "table",
) -> int:
    """Does a scored forward read this cache? Any `past_key_values` factory, compared with exact."""
    _check_format(format)
    from harness.comparison import Options, prepare
    from harness.comparison import compare as run_compare
    from harness.contenders import ForeignContender, SchemeContender

    contenders = [SchemeContender.of("exact"), ForeignContender(cache, load_factory(cache))]
    options = Options(
        model, revision, text, _windows(windows), window_length, score_length, stride, protocol, step, bos, device,
        dtype, seed, out, _command(),
    )  # fmt: skip
    subject = prepare(options)
    progress = _progress(len(subject.windows), len(contenders))
    run, folder = run_compare(contenders, options, subject=subject, progress=progress)
    _show(run, format, None)
    _note(f"record: {folder}")
    if run.audit.failures:
        return AUDIT_FAILED
    print(f"audit passed: the scored forward read {cache}")
    return 0


def load_factory(path: str) -> Callable[[Any], Any]:
    """The callable at "module:name"; ValueError where there is none. The current folder is looked in first."""
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f"--cache {path!r}: give module:factory, such as my_caches:make_cache")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--cache {path!r}: {module_name} cannot be imported: {error}") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"--cache {path!r}: {module_name} has no callable {name!r}")
    return factory


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
