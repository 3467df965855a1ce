"""`kvdelta recommend`: which scheme for a budget of bits? Light: imports what it needs in it."""

from typing import TYPE_CHECKING, Annotated

import typer

from kvdelta.analysis.cli.carry import ByLoss
from kvdelta.analysis.cli.flags import Format, takes_options
from kvdelta.harness.options import Options
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from kvdelta.harness.subject.prepared import Subject

recommending = typer.Typer()


@recommending.command("recommend")
@takes_options(windows=16, without=("model", "until_se", "protocol", "step", "stride", "same_text"))
def recommend(
    options: Options,
    budget: Annotated[
        float, typer.Option("--budget", help="measured bits a number, K and V, on average while decoding")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="hub id, folder or GGUF file, or packaged (the default); repeatable: a scheme is judged by the model where it loses most",
        ),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option("--scheme", help="a candidate; repeatable; default: all families and compositions that fit"),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="take what this engine can store as candidates, such as vllm")
    ] = None,
    by: ByLoss = "kl",
    step: Annotated[
        int, typer.Option("--step", min=1, help="tokens a forward: the suffix is decoded in such steps")
    ] = 16,
    race_windows: Annotated[
        int, typer.Option("--race-windows", min=2, help="windows of the race at most; none of them is verified on")
    ] = 16,
    keep: Annotated[
        int, typer.Option("--keep", min=2, help="so many race: those with the least loss predicted by a backward pass")
    ] = 16,
    format: Format = "table",
) -> int:
    """Which scheme loses least within a budget of bits? A race of all families, verified on --windows fresh ones against KIVI."""
    from kvdelta.schemes import parse_scheme

    if not 0 < budget < 16:
        raise UserError(f"--budget {budget:g}: give measured bits a number between 0 and 16, such as --budget 4.5")
    if engine and scheme:
        raise UserError("--engine and --scheme both say who the candidates are: give one of them")
    for spec in scheme or []:
        parse_scheme(spec)  # a typing error shows before anything is loaded
    if engine:
        from kvdelta.schemes.engines import presets

        presets(engine)
    if options.revision and len(set(model or [])) != 1:
        raise UserError("--revision is that of one hub id; give one --model with it")
    from kvdelta.analysis.cli.decoding_race import Race
    from kvdelta.analysis.cli.recommending import run_race

    subjects = _subjects(options, model or ["packaged"])
    asked = Race(budget, by, step, race_windows, keep, tuple(scheme or ()), engine)
    return run_race(asked, options, subjects, format)


def _subjects(options: Options, models: list[str]) -> "list[Subject]":
    from dataclasses import replace

    from kvdelta.analysis.cli.starting import load_subject
    from kvdelta.harness.axes import PACKAGED

    return [load_subject(replace(options, model=None if name == PACKAGED else name)) for name in dict.fromkeys(models)]
