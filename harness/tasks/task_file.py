"""A file of the user's own tasks: JSON lines of context, question and answer, or answers. Light: no torch."""

import hashlib
from pathlib import Path
from typing import Any

from kvdelta.harness.subject.errors import one_line
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

FIELDS = ("context", "question")
EXAMPLE = '{"context": "…", "question": "…", "answer": "…"}'


def read_task_file(name: str) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """Its rows, each with the number of its line, and the SHA-256 of the file. Fields: context, question, answer (or answers, a list, in
    the order in which they are given) and, where there are several tasks, task. UserError with the line and the field."""
    try:
        data = read_bytes(Path(name).expanduser(), "text")
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the task file {name} cannot be read as UTF-8 text: {one_line(error)}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{Path(name).name}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON: {one_line(error)}; give {EXAMPLE}") from None
        rows.append((number, _checked(row, where)))
    if not rows:
        raise UserError(f"the task file {name} has no line; give {EXAMPLE} a line")
    return rows, hashlib.sha256(data).hexdigest()


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
