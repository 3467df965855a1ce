"""`kvdelta`: the composition root, and the one module that may import analysis."""

import io
import os
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

try:
    import typer
except ModuleNotFoundError as error:  # a checkout on the path, in an environment that it was not installed in
    said = f"kvdelta: {error.name} is not installed in {sys.prefix}; in the checkout of kvdelta give"
    print(said, Path(sys.executable).name, "-m pip install -e .", file=sys.stderr)
    sys.exit(2)

from kvdelta.analysis.cli import log
from kvdelta.analysis.cli.analyzer import analyzer
from kvdelta.analysis.cli.bench import bench
from kvdelta.analysis.cli.carry import carrying
from kvdelta.analysis.cli.check_cache import checking
from kvdelta.analysis.cli.doctor import doctoring, show_version
from kvdelta.analysis.cli.ending import AUDIT_FAILED, ROW_FAILED, USER_ERROR, exit_code
from kvdelta.analysis.cli.evaluating import Flips, evaluating, show_evaluation
from kvdelta.analysis.cli.flags import (
    FACTORY,
    Caches,
    Format,
    Layers,
    Listed,
    MatchSinks,
    MatchTail,
    Schemes,
    takes_options,
)
from kvdelta.analysis.cli.from_records import from_records
from kvdelta.analysis.cli.recommend import recommending
from kvdelta.analysis.cli.recommended import show_recommendation
from kvdelta.analysis.cli.records import records
from kvdelta.analysis.cli.replay import replaying, show_replay
from kvdelta.analysis.cli.report import reporting
from kvdelta.analysis.cli.reproducing import reproduce
from kvdelta.analysis.cli.starting import load_subject, note, say
from kvdelta.analysis.cli.sweep import sweeping
from kvdelta.analysis.cli.tasks import By, show_tasks, tasking
from kvdelta.harness.options import Options
from kvdelta.harness.processes import rank
from kvdelta.harness.subject.imports import import_quickly
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def whole(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="of kvdelta and of what its numbers depend on"
        ),
    ] = False,
) -> None:
    """What does a KV-cache quantization scheme cost a model, in perplexity and in bytes, and why?"""


app.add_typer(reproduce, name="reproduce")
app.add_typer(bench, name="bench")

Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="SCHEME", help="give the deltas against this scheme, not exact")
]

Sort = Annotated[
    Literal["run", "bits", "kl"], typer.Option("--sort", help="rows as given, by measured bits (most first), or by KL")
]


@app.command()
@takes_options(without=("protocol", "step"), shared=True, rows=True, spread=True)
def compare(
    options: Options,
    scheme: Schemes = None,
    cache: Caches = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol", help="two-pass (the default), stepwise or single-pass; repeatable: all over one prefill"
        ),
    ] = None,
    step: Annotated[list[int] | None, typer.Option("--step", help="tokens per forward in stepwise; repeatable")] = None,
    match_tail: MatchTail = None,
    match_sinks: MatchSinks = None,
    layers: Layers = None,
    format: Format = "table",
    baseline: Baseline = None,
    sort: Sort = "run",
) -> int:
    """Score schemes on the same windows, with a cache that is read."""
    from kvdelta.harness.caches.specs import canonical

    protocols = options.by(protocol or ["two-pass"], step or [])
    if baseline and len(protocols) > 1:
        raise UserError("--baseline belongs to the table of one protocol: give it to `kvdelta show FOLDER/PROTOCOL`")
    if "single-pass" in (protocol or []) and len(protocols) > 1:
        raise UserError(
            "a single pass reads no cache, so there is nothing beside which its losses could stand: give --protocol single-pass alone; "
            "`kvdelta reproduce trap` shows it beside two passes"
        )
    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    import_quickly()
    from kvdelta.harness.caches.contenders import check_heads_apart, contenders_of, merged
    from kvdelta.harness.caches.foreign import user_cache
    from kvdelta.harness.caches.variants import by_layers, matched
    from kvdelta.harness.comparison import DEFAULT_SCHEMES

    given = contenders_of(
        [*(scheme or DEFAULT_SCHEMES), *(user_cache(one, options.time_limit) for one in cache or [])], note
    )
    contenders = merged(by_layers(matched(given, match_tail, match_sinks), layers or ["full"]), note)
    if options.tensor_parallel:
        check_heads_apart(contenders)  # before a model is loaded
    known = [name for contender in contenders for name in (identity_of(contender.name), contender.label)]
    if baseline is not None and baseline not in known and identity_of(canonical(baseline)) not in known:
        raise UserError(f"--baseline {baseline} is not among the schemes of this run; add --scheme {baseline}")
    from kvdelta.analysis.cli.runs import make_runs, report_failures, show_protocols, show_run, worst

    runs = make_runs(contenders, protocols, load_subject(protocols[0]))
    if len(runs) == 1:
        show_run(*runs[0], format, baseline, sort)
    else:
        show_protocols([run for run, _ in runs], format)
        note(f"the table of each: kvdelta show {shlex.join(str(folder) for _, folder in runs)}")
    return worst([report_failures(run) for run, _ in runs])


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")],
    baseline: Baseline = None,
    sort: Sort = "run",
    by: By = "task",
    flips: Flips = False,
    format: Format = "table",
) -> int:
    """Print the table of saved runs, any scheme against any other; of the same windows by several protocols also side by side. Replays,
    recommendations and tasks are printed again."""
    from kvdelta.analysis.cli.runs import report_failures, show_protocols, show_run, worst
    from kvdelta.analysis.reading.protocols import alike
    from kvdelta.harness.records.evaluation import has_evaluation
    from kvdelta.harness.records.recommendation import has_recommendation, load_recommendation
    from kvdelta.harness.records.replay import has_replay
    from kvdelta.harness.records.run_folder import load_run, run_folders
    from kvdelta.harness.records.tasks import has_tasks

    codes = [show_replay(folder, format) for folder in runs if has_replay(folder)]
    for folder in runs:
        if has_recommendation(folder):
            show_recommendation(load_recommendation(folder), format)
    codes += [show_tasks(folder, format, by) for folder in runs if has_tasks(folder)]
    codes += [show_evaluation(folder, format, flips) for folder in runs if has_evaluation(folder)]
    known = (has_replay, has_recommendation, has_tasks, has_evaluation)
    others = [one for one in runs if not any(has(one) for has in known)]
    folders = [folder for given in others for folder in run_folders(given)]
    loaded = [(load_run(folder), folder) for folder in folders]
    beside = alike([run for run, _ in loaded])
    for run, folder in loaded:
        if run.status != "complete":
            note(f"{folder} is not complete: {len(run.windows)} of {len(run.settings.windows)} windows")
        if not beside or format == "table":
            show_run(run, folder, format, baseline, sort)
        codes.append(report_failures(run))
    if beside:
        show_protocols([run for run, _ in loaded], format)
    return worst(codes)


@app.command("schemes")
def list_schemes(
    detail: Annotated[str | None, typer.Option("--detail", metavar="NAME", help="explain one scheme")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="NAME", help="an engine's names for what it stores, such as vllm's, as schemes"
        ),
    ] = None,
    format: Listed = "table",
) -> int:
    """List every scheme with its fields, defaults, source and measured bits; or the names of an engine."""
    from kvdelta.analysis.cli import catalogue

    if engine and detail:
        raise UserError("--engine lists names, --detail explains one: give one of them")
    print(
        catalogue.engine_names(engine, format)
        if engine
        else catalogue.detail(detail)
        if detail
        else catalogue.listing(format)
    )
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
    from kvdelta.schemes.registry import calibrated_family

    calibrated_family(scheme)  # a typing error shows before anything is loaded
    subject = load_subject(options)
    from kvdelta.harness import calibration

    path = calibration.calibrate(scheme, subject, options.out, weights, note)
    note(f"calibrated on {subject.text.name}; score it with:")
    say(f"kvdelta compare --scheme {shlex.quote(calibration.spec_with(scheme, path))}")
    return 0


@app.command()
@takes_options(windows=1, without=("until_se", "same_text", "drop"), rows=True)
def audit(
    options: Options,
    cache: Annotated[str, typer.Option("--cache", metavar="FACTORY", help=FACTORY)],
    format: Format = "table",
) -> int:
    """Does a scored forward read this cache? Whatever a factory makes for the model, beside exact."""
    import_quickly()
    from kvdelta.analysis.cli.runs import make_run, report_failures, show_run
    from kvdelta.harness.caches.contenders import contenders_of
    from kvdelta.harness.caches.foreign import user_cache

    run, folder = make_run(contenders_of([user_cache(cache, options.time_limit)]), options, load_subject(options))
    show_run(run, folder, format)
    if not run.audit.failures:
        note(f"audit passed: the scored forward read what {cache} had stored")
    return report_failures(run)


app.registered_commands += [
    *analyzer.registered_commands,
    *from_records.registered_commands,
    *records.registered_commands,
    *sweeping.registered_commands,
    *carrying.registered_commands,
    *reporting.registered_commands,
    *checking.registered_commands,
    *doctoring.registered_commands,
    *replaying.registered_commands,
    *recommending.registered_commands,
    *evaluating.registered_commands,
    *tasking.registered_commands,
]


def main() -> None:
    """Exit codes: 0 done, 1 a fault of kvdelta, 2 user error (one line), 3 audit failed (a row may have failed too), 4 a row failed, 130
    interrupted. Of several processes the first prints, and ends with 3 or 4: a launcher stops all when one of them does."""
    if sys.stderr is None:  # closed, 2>&-: print would take stdout for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 until the process ends
    if sys.stdout is None:
        print("kvdelta: stdout is closed: send the result to a file, or to /dev/null", file=sys.stderr)
        sys.exit(USER_ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Δ that a terminal's encoding has not ends no run
    if "_KVDELTA_COMPLETE" in os.environ:  # a shell asks what could be typed next
        app(prog_name="kvdelta")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank() else nullcontext():
        code = exit_code(app)
        log.event("end", code=code)
        log.close()
    sys.exit(0 if rank() and code in (AUDIT_FAILED, ROW_FAILED) else code)


if __name__ == "__main__":
    main()
