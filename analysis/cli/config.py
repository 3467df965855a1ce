"""`--config FILE`: flags from a YAML file, or those that a record was made with. A flag on the command line wins."""

import difflib
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from kvdelta.harness.subject.errors import one_line
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

# what says where to, how to print and when to stop, and changes no number
NOT_KEPT = (
    "out",
    "wait",
    "retry_failed",
    "drop",
    "time_limit",
    "format",
    "baseline",
    "sort",
    "style",
    "log_json",
    "config",
)


LONGEST = 60  # characters of a flag that there is not, in a message


def _from_file(context: Any, path: Path | None) -> Path | None:
    """The file's values become the defaults of the command, which checks them as if they were typed.

    context: typer gives it by position; it is not of the class typer.Context that it exports.
    """
    if path is not None and not context.resilient_parsing:
        flags = {
            str(flag.name): flag.multiple for flag in context.command.params if flag.name not in ("config", "help")
        }
        context.default_map = {**(context.default_map or {}), **flags_from(path, flags)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_from_file,
        metavar="FILE",
        help="flags as a YAML file, `model: [a, b]`, or a run folder, whose flags are taken again; a flag given here wins",
    ),
]


def kept_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags of a command came to, defaults included, as a record keeps them and --config takes them."""
    values = {name: _plain(value) for name, value in given.items() if name not in NOT_KEPT and value is not None}
    if "windows" in given and given["windows"] is None:
        values["windows"] = "all"
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def flags_from(path: Path, flags: Mapping[str, bool]) -> dict[str, Any]:
    """Of a file or a record's folder, values by flag: a list where it may be given several times, as `flags` says. UserError for what is
    none of them."""
    found = _of_record(path) if os.path.isdir(path) or path.suffix == ".json" else _read(path)
    values: dict[str, Any] = {}
    for named, value in found.items():
        key = one_line(named)[:LONGEST]
        name = key.replace("-", "_")
        if name not in flags:
            known = [flag.replace("_", "-") for flag in flags]
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
            raise UserError(f'{path.name} has "{key}", which is no flag of this command{hint}')
        if value is None:
            continue
        if isinstance(value, dict):
            raise UserError(f'{path.name}: "{key}" takes a value, or a list of them')
        items = value if isinstance(value, list) else [value]
        odd = [item for item in items if not isinstance(item, str | int | float)]
        if odd:
            large = isinstance(odd[0], list | dict | set | tuple | bytes)  # lists of lists of lists
            said = reprlib.repr(odd[0]) if large else odd[0]
            raise UserError(f'{path.name}: "{key}" takes words and numbers, and {said} is none; put it in quotes')
        if any("\0" in item for item in items if isinstance(item, str)):
            raise UserError(f'{path.name}: "{key}" has a zero byte, which no file, model or text has in its name')
        # of a flag that is given once, what is a list there too: --depths 512,1024
        values[name] = items if flags[name] else value if items is not value else ",".join(map(str, items))
    return values


def _of_record(path: Path) -> dict[str, Any]:
    """The flags in the record of a folder: of a comparison, or else of what other command left one there."""
    files = [path]
    if os.path.isdir(path):
        files = sorted(path.glob("*.json"), key=lambda file: (file.name != "run.json", file.name))
    for file in files:
        try:
            content = parse_json(read_bytes(file, "record"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--config {path}: {file.name} cannot be read: {reason}") from None
        flags = content.get("flags") if isinstance(content, dict) else None
        if flags and isinstance(flags, dict):
            return flags
    raise UserError(
        f"--config {path}: no record there keeps its flags (older ones do not, nor do runs from Python); give a YAML file with lines such "
        "as `windows: 8`"
    )


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_bytes(path, "configuration").decode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the configuration {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except RecursionError:
        raise UserError(f"{path.name} is nested too deep to be flags: give lines such as `windows: 8`") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path.name}{where} is no YAML: {one_line(getattr(error, 'problem', None) or error)}"
        ) from None
    except Exception as error:  # a date that there is not, a number of 5,000 digits, a tag of what it is not
        raise UserError(f"{path.name} has a value that cannot be read: {one_line(error)}; put it in quotes") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no flags: give lines such as `model: [a, b]` and `windows: 8`")
    return content
