"""`--config FILE`: flags from a YAML file. A flag on the command line wins."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import read_bytes


def _from_file(context: Any, path: Path | None) -> Path | None:
    """The file's values become the defaults of the command, which checks them as if they were typed.

    context: typer gives it by position; it is not of the class typer.Context that it exports.
    """
    if path is not None and not context.resilient_parsing:
        flags = {str(flag.name): flag for flag in context.command.params if flag.name not in ("config", "help")}
        context.default_map = {**(context.default_map or {}), **_values(path, flags)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_from_file,
        metavar="FILE",
        help="flags as a YAML file: `model: [a, b]`; a flag given here wins",
    ),
]


def _values(path: Path, flags: dict[str, Any]) -> dict[str, Any]:
    found = _read(path)
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in flags:
            known = [flag.replace("_", "-") for flag in flags]
            near = difflib.get_close_matches(str(key).replace("_", "-"), known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
            raise UserError(f'{path.name} has "{key}", which is no flag of this command{hint}')
        if value is None:
            continue
        if isinstance(value, dict):
            raise UserError(f'{path.name}: "{key}" takes a value, or a list of them')
        items = value if isinstance(value, list) else [value]
        # of a flag that is given once, what is a list there too: --depths 512,1024
        values[name] = items if flags[name].multiple else value if items is not value else ",".join(map(str, items))
    return values


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_bytes(path, "configuration").decode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the configuration {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path.name}{where} is no YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no flags: give lines such as `model: [a, b]` and `windows: 8`")
    return content
