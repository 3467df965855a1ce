"""Options as command-line flags: one declaration serves every command that scores windows."""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kvdelta.analysis.cli import log
from kvdelta.analysis.cli.config import Config, kept_flags
from kvdelta.analysis.cli.starting import typed
from kvdelta.harness.options import Options
from kvdelta.harness.processes import size
from kvdelta.schemes.errors import UserError

Style = Annotated[str | None, typer.Option("--style", help="a matplotlib style, or a .mplstyle file, for the figures")]
Format = Annotated[
    Literal["table", "md", "json", "csv", "parquet"], typer.Option("--format", help="of the result on stdout")
]
Listed = Annotated[Literal["table", "md", "json", "csv"], typer.Option("--format", help="of the result on stdout")]
"""Of what is a list to read and has no figures to work with."""


def scheme_names(incomplete: str) -> list[str]:
    """What a shell completes: families, short names and names of engines."""
    from kvdelta.schemes import SCHEMES
    from kvdelta.schemes.engines import ENGINES

    names = [name for family in SCHEMES.values() for name in (family.name, *family.short)]
    names += [f"{engine}/{name}" for engine, known in ENGINES.items() for name in known]
    return [name for name in names if name.startswith(incomplete)]


Schemes = Annotated[
    list[str] | None,
    typer.Option("--scheme", help="a scheme; repeatable; see `kvdelta schemes`", autocompletion=scheme_names),
]
FACTORY = "module:factory or 'module:factory(window=64)'; factory(model.config, …) returns it"
Caches = Annotated[
    list[str] | None,
    typer.Option(
        "--cache",
        metavar="FACTORY",
        help=f"a cache beside them, {FACTORY}; repeatable",
    ),
]
MatchTail = Annotated[
    int | None,
    typer.Option(
        "--match-tail",
        min=0,
        help="so many newest tokens exact in every scheme, in place of its own window, and those that fill no block of all",
    ),
]
MatchSinks = Annotated[
    int | None,
    typer.Option("--match-sinks", min=0, help="so many first tokens exact in every scheme, in place of its own"),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        metavar="full|sliding|all",
        help="which layers of a model that has both are quantized: those with full attention (the default), with a sliding window, "
        "or all; repeatable: a row of each",
    ),
]
OF_ROWS = ("retry_failed", "drop", "time_limit")
LogJson = Annotated[
    Path | None,
    typer.Option("--log-json", metavar="FILE", help="what happens, as JSON lines at the end of FILE, while it happens"),
]
FiguresOut = Annotated[Path | None, typer.Option("--out", help="folder for the figures; default: beside the first run")]


def takes_options(
    *,
    windows: int = 8,
    without: Collection[str] = ("until_se",),
    shared: bool = False,
    rows: bool = False,
    spread: bool = False,
) -> Callable[[Callable[..., int]], Any]:
    """Give a command the flags of Options, and the Options made of them as its first argument.

    windows: the command's own default; without: fields that the command decides itself; shared: whether several processes
    share its windows, and what is no such command is refused in them. rows: whether a row of its own may end, and be tried again.
    spread: whether they may share the model's heads.
    """
    left_out = {
        "command",
        "flags",
        "offset",
        *without,
        *(() if rows else OF_ROWS),
        *(() if spread else ("tensor_parallel",)),
    }
    chosen = [option for option in fields(Options) if option.name not in left_out]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = list(inspect.signature(command).parameters.values())[1:]
        flags = [_flag(option, windows if option.name == "windows" else option.default) for option in chosen]
        flags += [_own("config", Config), _own("log_json", LogJson)]

        @functools.wraps(command)
        def run(**given: Any) -> int:
            if size() > 1 and not shared:
                raise UserError(
                    "only compare and reproduce trap share their windows among processes; give this command without torchrun "
                    "or accelerate launch"
                )
            given.pop("config")
            log.open_log(given.pop("log_json"))
            options = {option.name: given.pop(option.name) for option in chosen}
            effective = kept_flags(given | options)
            log.event("begin", command=typed(), flags=effective)
            return command(Options(**options, command=typed(), flags=effective), **given)

        run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)}
        return run

    return decorate


def _flag(option: Field, default: Any) -> inspect.Parameter:
    name, help = "--" + option.name.replace("_", "-"), option.metadata["help"]
    if option.name == "windows":  # typer knows no "a number, or a word"
        kind = Annotated[Any, typer.Option(name, help=help, parser=_windows, metavar="N|all")]
    else:
        kind = Annotated[option.type, typer.Option(name, help=help)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _own(name: str, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _windows(text: Any) -> int | None:
    if text == "all":
        return None
    if isinstance(text, str | int) and not isinstance(text, bool) and str(text).strip().lstrip("+-").isdecimal():
        return int(text)
    raise typer.BadParameter(f"{text!r} is neither a whole number nor all")


def check_style(style: str | None) -> None:
    """ValueError, before anything is loaded, for a style that there is not."""
    if style is not None:
        from kvdelta.analysis import plots

        with plots.styled(style):
            pass
