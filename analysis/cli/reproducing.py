"""`kvdelta reproduce`: comparisons that show something, run as published or as the README tells them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kvdelta.analysis.cli.ending import AUDIT_FAILED
from kvdelta.analysis.cli.flags import Layers, MatchSinks, takes_options
from kvdelta.analysis.cli.starting import load_subject, note, say
from kvdelta.harness.options import Options

reproduce = typer.Typer(no_args_is_help=True, help="Reproduce a published comparison.")

DECODED = ("int4", "kivi4", "kivi2")
STEPS = (16, 1)


@reproduce.command("trap")
@takes_options(windows=4, without=("until_se", "protocol", "step", "same_text"), shared=True)
def reproduce_trap(options: Options) -> int:
    """Show why a single pass cannot tell an 8-bit cache from a 2-bit one."""
    subject = load_subject(options)
    from kvdelta.analysis.cli import terminal
    from kvdelta.analysis.cli.runs import make_run
    from kvdelta.analysis.cli.trap_contenders import trap_contenders
    from kvdelta.analysis.reading import run_tables, summary
    from kvdelta.analysis.reading.trap import trap_table, trap_verdict

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


@reproduce.command("decoding")
@takes_options(windows=4, without=("until_se", "protocol", "step", "same_text"), shared=True)
def reproduce_decoding(
    options: Options,
    scheme: Annotated[
        list[str] | None, typer.Option("--scheme", help=f"repeatable; default: {', '.join(DECODED)}")
    ] = None,
    step: Annotated[
        list[int] | None, typer.Option("--step", min=1, help="repeatable; default: 16 and 1, which is decoding")
    ] = None,
    match_tail: Annotated[
        int, typer.Option("--match-tail", min=0, help="exact newest tokens of the rows that have them alike")
    ] = 128,
    match_sinks: MatchSinks = None,
    layers: Layers = None,
) -> int:
    """Show what two passes leave out: the same schemes decoding, with their own exact tails and with equal ones."""
    from kvdelta.harness.caches.specs import canonical

    protocols = options.by(["two-pass", "stepwise"], step or STEPS)
    schemes = [*(scheme or DECODED)]
    for spec in schemes:
        canonical(spec)
    from kvdelta.harness.subject.imports import import_quickly

    import_quickly()
    from kvdelta.analysis.cli.runs import make_runs, report_failures, show_protocols, worst
    from kvdelta.analysis.reading.protocol_tables import verdict
    from kvdelta.analysis.reading.protocols import protocol_rows
    from kvdelta.harness.caches.contenders import contenders_of
    from kvdelta.harness.caches.variants import and_matched, by_layers

    own = by_layers(contenders_of(schemes, note), layers or ["full"])
    contenders = and_matched(own, match_tail, match_sinks)
    runs = [run for run, _ in make_runs(contenders, protocols, load_subject(options))]
    show_protocols(runs, "table")
    shown, sentences = verdict(protocol_rows(runs))
    say("", *sentences)
    return worst([report_failures(run) for run in runs]) or (0 if shown else AUDIT_FAILED)


@reproduce.command("kivi-vs-int4")
@takes_options(without=("until_se", "protocol", "step", "same_text"))
def reproduce_kivi(options: Options) -> int:
    """KIVI against naive INT4: settings, grid, one change at a time, and a page that explains them."""
    subject = load_subject(options)
    from kvdelta.analysis.cli.kivi_report import kivi_report

    return kivi_report(options, subject)
