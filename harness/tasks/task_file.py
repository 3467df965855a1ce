"""A file of the user's own tasks: JSON lines of context, question and answer, or answers. Light: no torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kvdelta.harness.subject.errors import one_line
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

FIELDS = ("context", "question")
EXAMPLE = '{"context": "…", "question": "…", "answer": "…"}'


def read_task_file(name: str) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """Its rows, each with the number of its line, and the SHA-256 of the file. Fields: context, question, answer (or answers, a list, in
    the order in which they are given) and, where there are several tasks, task. UserError with the line and the field, or with the two lines
    that are the same sample."""
    try:
        data = read_bytes(Path(name).expanduser(), "text")
        lines = data.decode("utf-8-sig").split("\n")  # JSON may hold what else Unicode ends lines with
    except FileNotFoundError:
        raise UserError(f"there is no task file {name}; give one with {EXAMPLE} on each line") from None
    except IsADirectoryError:
        raise UserError(f"the task file {name} is a folder; give a file with {EXAMPLE} on each line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the task file {name} cannot be read as UTF-8 text: {one_line(error)}") from None
    rows, seen = [], dict[str, int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = place(name, number)
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON: {one_line(error)}; give {EXAMPLE}") from None
        rows.append((number, checked := _checked(row, where)))
        first = seen.setdefault(json.dumps(checked, sort_keys=True), number)
        if first != number:
            raise UserError(
                f"{where} is the sample of line {first} again, and counted twice it would look like more evidence; delete one of them"
            )
    if not rows:
        raise UserError(f"the task file {name} has no line; give {EXAMPLE} a line")
    return rows, hashlib.sha256(data).hexdigest()


def place(name: str, number: int) -> str:
    """How messages name a line."""
    return f"{Path(name).name}, line {number}"


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object; give {EXAMPLE}")
    for field in FIELDS:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise UserError(f'{where}: the field "{field}" is {_what(row, field)}; give {EXAMPLE}')
    field = "answers" if "answers" in row else "answer"
    answers = row.get("answers", [row.get("answer")])
    good = isinstance(answers, list) and answers and all(isinstance(one, str) and one.strip() for one in answers)
    if not good:
        raise UserError(f'{where}: the field "{field}" is {_what(row, field)}; give {EXAMPLE}')
    task = row.get("task", "")
    if not isinstance(task, str):
        raise UserError(f'{where}: the field "task" is {_what(row, "task")}; give a name, or leave it out')
    return {"context": row["context"], "question": row["question"], "answers": answers, "task": task}


def _what(row: dict[str, Any], field: str) -> str:
    if field not in row:
        return "missing"
    value = row[field]
    return "empty" if value in ("", []) or (isinstance(value, str) and not value.strip()) else "no text"
