"""`kvdelta bench`: what comparing, storing, reading and decoding cost, everything in turn in one process."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvdelta.analysis.cli.flags import Caches, Format, Schemes, Style, check_style, takes_options
from kvdelta.analysis.cli.starting import load_subject, note, say
from kvdelta.harness.options import Options
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from kvdelta.harness.caches.contenders import Contender
    from kvdelta.harness.records.bench import Bench, Held, Times
    from kvdelta.harness.subject.windows import Batch

bench = typer.Typer(no_args_is_help=True, help="Measure what it costs: everything in turn, A B C A, round after round.")

MODEL_ALONE = (
    "until_se", "protocol", "step", "same_text", "stride", "windows", "window_length", "score_length", "seed", "bos",
)  # fmt: skip
"""Flags of windows and protocols, which these commands have not."""
OF_RECORDS = ("retry_failed", "drop")
"""Flags of records that go on; a bench is measured anew."""

Rounds = Annotated[int, typer.Option("--rounds", min=1, help="after a warm-up")]
Contexts = Annotated[str, typer.Option("--contexts", help="tokens in the cache, such as 2048,8192,32768")]
Shape = Annotated[
    str | None,
    typer.Option("--shape", help="in place of --model: random weights in a known shape, such as llama-3.1-8b"),
]


@bench.command("compare")
@takes_options(without=("until_se", "protocol", "step", "same_text"))
def bench_compare(
    options: Options,
    scheme: Schemes = None,
    rounds: Rounds = 5,
    step: Annotated[int | None, typer.Option(min=1, help="also stepwise, so many tokens a forward")] = None,
    format: Format = "table",
) -> int:
    """What a window more, its controls and its scoring cost a comparison, in windows of the exact cache alone."""
    contenders = _contenders(scheme)
    subject = load_subject(options)
    model = subject.loaded.model
    from kvdelta.harness.batching import batch_size
    from kvdelta.harness.benching.comparing import time_comparison
    from kvdelta.harness.benching.record import record_of
    from kvdelta.harness.benching.turns import Turns

    turns = Turns(rounds, note)
    times = time_comparison(contenders, options, subject, step, turns, note)
    batch = min(len(subject.windows), batch_size(options.batch, model, options.window_length, options.score_length))
    record = record_of("compare", options, contenders, subject.loaded.name, model, turns, batch, options.score_length)
    return _done(record, times, [], options.out, None, format)


@bench.command("schemes")
@takes_options(without=(*MODEL_ALONE, *OF_RECORDS), rows=True)
def bench_schemes(
    options: Options,
    scheme: Schemes = None,
    cache: Caches = None,
    contexts: Contexts = "1536",
    suffix: Annotated[int, typer.Option(min=2, help="tokens that read the cache, in one forward")] = 512,
    rounds: Rounds = 5,
    shape: Shape = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """What storing a prefix and reading it costs, scheme by scheme: fill and suffix against the exact cache's."""
    check_style(style)
    contenders = _contenders(scheme, cache, options.time_limit)
    lengths = _contexts(contexts)
    name, model, batches = _subject(options, shape, lengths, suffix)
    from kvdelta.harness.benching.passes import time_passes
    from kvdelta.harness.benching.record import record_of
    from kvdelta.harness.benching.turns import Turns
    from kvdelta.schemes import kernels

    turns = Turns(rounds, note, time_limit=options.time_limit)
    with kernels.for_windows(kernels.FEW, lambda name: None):
        times = time_passes(model, contenders, batches, turns, note)
    batch = len(batches[lengths[0]])
    record = record_of("schemes", options, contenders, name, model, turns, batch, suffix)
    return _done(record, times, [], options.out, style, format)


@bench.command("decode")
@takes_options(without=(*MODEL_ALONE, *OF_RECORDS, "batch"), rows=True)
def bench_decode(
    options: Options,
    scheme: Schemes = None,
    cache: Caches = None,
    contexts: Contexts = "2048",
    steps: Annotated[int, typer.Option(min=1, help="tokens that are generated")] = 64,
    shape: Shape = None,
    style: Style = None,
    format: Format = "table",
) -> int:
    """What a step of generation costs over a long cache, and the bytes that it holds: exact, stored, mirrored."""
    check_style(style)
    contenders = _contenders(scheme or ["kivi4"], cache, options.time_limit)
    name, model, batches = _subject(replace(options, batch="1"), shape, _contexts(contexts), 2)
    from kvdelta.harness.benching.decoding import time_steps
    from kvdelta.harness.benching.record import record_of
    from kvdelta.harness.benching.turns import Turns
    from kvdelta.schemes import kernels

    turns = Turns(steps, note, time_limit=options.time_limit)
    with kernels.for_windows(kernels.FEW, lambda name: None):
        times, held = time_steps(model, contenders, batches, turns, note)
    record = record_of("decode", options, contenders, name, model, turns, 1, steps)
    return _done(record, times, held, options.out, style, format)


@bench.command("show")
def bench_show(
    folders: Annotated[list[Path], typer.Argument(metavar="BENCH…", help="folders of benches")],
    style: Style = None,
    format: Format = "table",
) -> int:
    """Print the tables of saved benches, and draw their figures again."""
    check_style(style)
    from kvdelta.analysis.plots import figures
    from kvdelta.harness.records.bench import load_bench

    code = 0
    for folder in folders:
        code = max(code, _show(load_bench(folder), format))
        for path in figures.draw_bench(folder, style):
            note(f"figure: {path}")
    return code


def _contenders(
    schemes: Sequence[str] | None, caches: Sequence[str] | None = None, time_limit: float | None = None
) -> "list[Contender]":
    from kvdelta.harness.caches.specs import canonical

    for spec in schemes or []:
        canonical(spec)  # a typing error shows before anything is loaded
    from kvdelta.harness.caches.contenders import contenders_of
    from kvdelta.harness.caches.foreign import user_cache
    from kvdelta.harness.comparison import DEFAULT_SCHEMES

    return contenders_of([*(schemes or DEFAULT_SCHEMES), *(user_cache(one, time_limit) for one in caches or [])], note)


def _contexts(text: str) -> list[int]:
    lengths = [int(one) for one in text.split(",") if one.strip().isdecimal()]
    if len(lengths) != len(text.split(",")) or 0 in lengths:
        raise UserError(f"--contexts {text}: give numbers of tokens with commas between, such as 2048,8192")
    return sorted(set(lengths))


def _subject(
    options: Options, shape: str | None, contexts: Sequence[int], suffix: int
) -> "tuple[str, Any, dict[int, Batch]]":
    """Name, model, and by context a batch of windows of it: text, or of a shape random tokens."""
    if shape is not None and (options.model or options.text):
        raise UserError("--shape takes the place of --model, and its tokens are random: leave --model and --text out")
    import torch

    from kvdelta.harness.benching.record import batches_of
    from kvdelta.harness.subject.model import pick_device, pick_dtype
    from kvdelta.harness.subject.shapes import shaped_model

    if shape is None:
        # any window: those to time are cut below, and only time is asked for, beyond the model's positions too
        subject = load_subject(replace(options, window_length=3, score_length=2, windows=1))
        name, model, tokens = subject.loaded.name, subject.loaded.model, subject.tokens
    else:
        device = pick_device(options.device)
        model = shaped_model(shape, device, pick_dtype(options.dtype, device))
        name, tokens = f"random weights in the shape of {shape}", torch.randint(0, model.config.vocab_size, (2**20,))
    return name, model, batches_of(model, tokens, contexts, suffix, options.batch)


def _done(
    record: "Bench", times: "list[Times]", held: "list[Held]", out: str | None, style: str | None, format: str
) -> int:
    """Kept, shown, drawn."""
    from kvdelta.analysis.plots import figures
    from kvdelta.harness.records.bench import save_bench

    record = record.model_copy(update={"times": times, "held": held})
    stamp = hashlib.sha256(f"{record.command}{time.time()}".encode()).hexdigest()[:12]
    folder = Path(out) if out else Path("runs") / f"bench-{record.kind}-{stamp}"
    save_bench(record, folder)
    code = _show(record, format)
    drawn = figures.draw_bench(folder, style)
    note(f"record: {folder}{f', with {len(drawn)} figures' if drawn else ''}")
    return code


def _show(record: "Bench", format: str) -> int:
    """On stdout; the exit code that rows ask for which are left out."""
    from kvdelta.analysis.cli import terminal
    from kvdelta.analysis.cli.ending import ROW_FAILED
    from kvdelta.analysis.cli.output import FOR_PROGRAMS, print_rows
    from kvdelta.analysis.reading import costs, tables
    from kvdelta.analysis.reading.rows import plain

    rows, shown = costs.shown(record)
    code = ROW_FAILED if record.left_out else 0
    if format in FOR_PROGRAMS:
        print_rows(plain(rows), format)
        return code
    say(*costs.heading(record), format=format)
    if format == "md":
        print("\n" + tables.as_markdown(*shown), end="")
    else:
        terminal.print_table(*shown)
    for name, reason in record.left_out.items():
        say(f"left out: {name}, {reason}", format=format)
    return code
