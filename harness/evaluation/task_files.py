"""The YAML files of a folder of tasks, read before lm_eval does: it passes over what it cannot read, without a word. Runs nothing of them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kvdelta.harness.subject.errors import one_line
from kvdelta.schemes.errors import UserError

NOT_LOOKED_AT = {"__pycache__", ".ipynb_checkpoints"}  # nor does lm_eval
NAMED = 3


class _Reader(yaml.SafeLoader):
    """What a tag such as !function names is left out, not looked for."""


_Reader.add_multi_constructor("", lambda loader, tag, node: None)


def check_files(folder: str) -> list[str]:
    """The names of those files that hold no task and no group. UserError, with file and line: one that is no YAML."""
    return [path.name for path in _files(folder) if not _holds_task(_content(path))]


def without_task(names: list[str]) -> str:
    """Of such names, a remark for who does not find a task; nothing of none."""
    if not names:
        return ""
    some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"; no `task:` and no `group:` is in {some}"


def _files(folder: str) -> Iterator[Path]:
    for path in sorted(Path(folder).glob("**/*.yaml")):
        if os.path.isfile(path) and not NOT_LOOKED_AT & set(path.parts):
            yield path


def _holds_task(content: Any) -> bool:
    return isinstance(content, dict) and bool(content.get("task") or content.get("group"))


def _content(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), _Reader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or one_line(error)
    except OSError as error:
        raise UserError(f"--include-path: {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:  # a date that is none, a list as a key, lists in lists
        where, why = "", one_line(error)
    raise UserError(f"--include-path: {path}{where} is no YAML: {why}; mend it, or take it out of the folder")
