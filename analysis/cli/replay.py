"""`kvdelta replay`: the exact model's own text, fed to every scheme token by token. Light: imports what it needs in it."""

from pathlib import Path
from typing import Annotated

import typer

from kvdelta.analysis.cli.flags import (
    Caches,
    Format,
    Layers,
    MatchSinks,
    MatchTail,
    Schemes,
    Style,
    check_style,
    takes_options,
)
from kvdelta.analysis.cli.starting import note, say
from kvdelta.harness.options import Options
from kvdelta.harness.replaying.options import ReplayOptions

replaying = typer.Typer()
ITS_OWN = ("until_se", "protocol", "step", "text", "windows", "window_length", "score_length", "stride")
"""Flags that follow from prompts and tokens."""


@replaying.command("replay")
@takes_options(without=ITS_OWN, rows=True)
def replay(
    options: Options,
    scheme: Schemes = None,
    cache: Caches = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="SOURCE",
            help="a text (its paragraphs), JSON lines (text, prompt or messages) or a data set, NAME:SPLIT:FIELD; default: "
            "wikipedia-excerpt",
        ),
    ] = None,
    prompt_count: Annotated[int, typer.Option(help="how many prompts: the unit of all intervals")] = 4,
    prompt_length: Annotated[
        int,
        typer.Option(
            help="tokens that each prompt is cut to, and has: shorter ones are left out; of a longer chat the first "
            "token and the last ones stay"
        ),
    ] = 256,
    tokens: Annotated[int, typer.Option(help="tokens that are scored after each prompt")] = 64,
    step: Annotated[int, typer.Option(help="tokens per forward; 1 is decoding")] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="write the likeliest tokens")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="of the text; default: the model's own sampling settings, or 1")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="draw from the likeliest tokens of this share")] = None,
    free_run: Annotated[
        bool, typer.Option("--free-run", help="each scheme also writes by itself: length, repetition, departure")
    ] = False,
    sampled: Annotated[
        str | None,
        typer.Option(
            "--sampled",
            metavar="RUN",
            help="take the text of a replay of the same prompts, model and sampling, with other schemes, instead of sampling again",
        ),
    ] = None,
    match_tail: MatchTail = None,
    match_sinks: MatchSinks = None,
    layers: Layers = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Does the error grow along a long generation? Schemes store the exact model's own text, token by token."""
    from kvdelta.harness.caches.specs import canonical

    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    check_style(style)
    how = ReplayOptions(
        prompts, prompt_count, prompt_length, tokens, step, greedy, temperature, top_p, free_run, sampled
    )
    from kvdelta.harness.records.provenance import versions
    from kvdelta.harness.subject.imports import import_quickly

    versions()
    import_quickly()
    from kvdelta.analysis.cli import terminal
    from kvdelta.harness.caches.contenders import contenders_of, merged
    from kvdelta.harness.caches.foreign import user_cache
    from kvdelta.harness.caches.variants import by_layers, matched
    from kvdelta.harness.comparison import DEFAULT_SCHEMES
    from kvdelta.harness.replaying.replay import replay as run_replay

    caches = [user_cache(one, options.time_limit) for one in cache or []]
    given = contenders_of([*(scheme or DEFAULT_SCHEMES), *caches], note)
    contenders = merged(by_layers(matched(given, match_tail, match_sinks), layers or ["full"]), note)
    _, folder = run_replay(contenders, options, how, progress=terminal.progress, on_note=note)
    code = show_replay(folder, format)
    from kvdelta.analysis.plots import figures

    paths = figures.draw(folder, style, note)
    note(f"record: {folder}, with {len(paths)} figures in {folder / 'figures'}")
    return code


def show_replay(folder: Path, format: str) -> int:
    """Print a saved replay; the exit code that its audit asks for."""
    from kvdelta.analysis.cli.output import FOR_PROGRAMS, show_rows
    from kvdelta.analysis.cli.runs import report_failures
    from kvdelta.analysis.reading import replay_tables, replays
    from kvdelta.harness.records.replay import load_replay, load_steps
    from kvdelta.schemes.errors import UserError

    record = load_replay(folder)
    if record.status != "complete":
        raise UserError(f"{folder} is not complete; give its command again to go on: {record.command}")
    steps = load_steps(folder)
    rows, bins = replays.whole_rows(record, steps), replays.bin_rows(record, steps)
    shown = {"": replay_tables.whole_table(record, rows), "KL by tokens written": replay_tables.bin_table(record, bins)}
    legend = "\n".join([replay_tables.LEGEND, *([replay_tables.FREE_LEGEND] if record.rows[0].free_run else [])])
    show_rows(record, [*rows, *bins], shown, format, legend, replay_tables.heading(record, steps))
    if format in FOR_PROGRAMS:
        return report_failures(steps)
    if lines := replay_tables.notes(rows):
        say("", *lines, format=format)
    return report_failures(steps)
