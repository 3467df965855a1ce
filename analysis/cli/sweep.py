"""`kvdelta sweep`: a grid of comparisons. Light: imports what it needs in it."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvdelta.analysis.cli.carry import Budgets, ByLoss, show_carried
from kvdelta.analysis.cli.ending import ROW_FAILED
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
from kvdelta.analysis.cli.starting import note
from kvdelta.harness.options import Options
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from kvdelta.harness.axes import Axes
    from kvdelta.harness.caches.contenders import Contender

sweeping = typer.Typer()


def _depths(text: Any) -> tuple[int, ...]:
    """From "512,1024,4K"; a list, of a configuration file, has them one by one."""
    words = [
        word.strip() for one in (text if isinstance(text, list | tuple) else [text]) for word in str(one).split(",")
    ]
    thousands = [(word[:-1], 1024) if word[-1:] in ("k", "K") else (word, 1) for word in words]
    if not all(number.isdecimal() for number, _ in thousands):
        raise typer.BadParameter(f"{text!r}: give lengths of prefixes in tokens, such as 512,2048,16K")
    return tuple(int(number) * times for number, times in thousands)


@sweeping.command("sweep")
@takes_options(without=("model", "text", "window_length", "protocol", "step"), rows=True)
def sweep(
    options: Options,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="hub id, folder or GGUF file, or packaged (the default); repeatable"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="wikipedia-excerpt (the default), wikitext-2, python-stdlib, a text file, or JSON lines of chats; repeatable",
        ),
    ] = None,
    window_length: Annotated[
        list[int] | None, typer.Option("--window-length", help="tokens of a window; repeatable; default: 2048")
    ] = None,
    depths: Annotated[
        Any,
        typer.Option(
            "--depths",
            parser=_depths,
            metavar="N,N,…",
            help="in place of window lengths: the same scored tokens under prefixes of so many tokens, 512,2K,16K",
        ),
    ] = None,
    scheme: Schemes = None,
    cache: Caches = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="two-pass (the default) or stepwise; repeatable")
    ] = None,
    step: Annotated[list[int] | None, typer.Option("--step", help="tokens per forward in stepwise; repeatable")] = None,
    match_tail: MatchTail = None,
    match_sinks: MatchSinks = None,
    layers: Layers = None,
    by: ByLoss = "nll",
    budget: Budgets = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """Compare schemes over models, texts and contexts, one record a cell; then read them as `carry` does."""
    from kvdelta.harness.caches.specs import canonical

    check_style(style)
    for spec in scheme or []:
        canonical(spec)  # a typing error shows before anything is loaded
    if options.revision and len(set(model or [])) != 1:
        raise UserError("--revision is that of one hub id; give one --model with it")
    if "single-pass" in (protocol or []):
        raise UserError("a single pass reads no cache, so its cells have no order; leave --protocol single-pass out")
    options.by(protocol or ["two-pass"], step or [])
    from kvdelta.harness.records.provenance import versions
    from kvdelta.harness.subject.imports import import_quickly

    versions()
    import_quickly()
    from kvdelta.harness.axes import PACKAGED, Axes
    from kvdelta.harness.caches.contenders import contenders_of, merged
    from kvdelta.harness.caches.foreign import user_cache
    from kvdelta.harness.caches.variants import by_layers, matched
    from kvdelta.harness.comparison import DEFAULT_SCHEMES

    given = contenders_of(
        [*(scheme or DEFAULT_SCHEMES), *(user_cache(one, options.time_limit) for one in cache or [])], note
    )
    contenders = merged(by_layers(matched(given, match_tail, match_sinks), layers or ["full"]), note)
    axes = Axes(
        [None if name == PACKAGED else name for name in model or [PACKAGED]],
        text or [None],
        window_length or (),
        depths or (),
        protocol or ("two-pass",),
        step or (),
    )
    return _swept(contenders, options, axes, by, budget, style, format)


def _swept(
    contenders: "list[Contender]", options: Options, axes: "Axes", by: Any, budget: Any, style: str | None, format: str
) -> int:
    from kvdelta.analysis.cli.runs import make_runs, report_failures, show_run, worst
    from kvdelta.harness.sweeping import sweep as run_sweep

    cells, runs, folder = run_sweep(contenders, options, axes, make_runs, note)
    failed = [cell for cell in cells if cell.status == "failed"]
    for cell in failed:
        note(f"failed: {cell.folder}: {cell.error}")
    if len(runs) > 1:
        show_carried([folder], by, budget or (), False, options.seed, folder / "figures", style, format)
    else:
        show_run(*runs[0], format)
    note(f"{len(runs)} records in {folder}; again: kvdelta carry {shlex.quote(str(folder))}")
    return worst([*map(report_failures, [run for run, _ in runs]), *[ROW_FAILED] * bool(failed)])
