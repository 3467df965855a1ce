"""A record's file: typed JSON with a schema version, which says by hashes whether it is as it was written."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kvdelta.harness.records import hashes
from kvdelta.harness.records.writing import write_file
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes

SCHEMA_VERSION = 1


class Typed(BaseModel):
    """A part of a record: no field more than those named, each of its type."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Record(Typed):
    """What every record has. In its file stand hashes too (harness.records.hashes), which only reading and writing know."""

    schema_version: int = SCHEMA_VERSION


RecordT = TypeVar("RecordT", bound=Record)


def save_record(record: Record, path: Path) -> None:
    """All of it or nothing, with its hashes; UserError where it cannot be written."""
    content = hashes.hashed(json.loads(record.model_dump_json()))  # pydantic writes NaN as null
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_record(folder: str | Path, name: str, kind: type[RecordT]) -> RecordT:
    """Read one kind of record; UserError where there is none, one of another schema version, or one that is not as it was written."""
    path = Path(folder) / name
    content = read_content(folder, name)
    changed, windows = hashes.damaged(content)
    if changed or windows:
        raise not_as_written(path)
    return of_kind(path, content, kind)


def read_content(folder: str | Path, name: str) -> dict[str, Any]:
    """The JSON of a record of this schema version."""
    path = Path(folder) / name
    try:
        content = parse_json(read_bytes(path, "record"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run folder: there is no {name} in it") from None
    except (OSError, ValueError) as error:  # no text, no JSON, JSON without end
        raise UserError(f"{path} cannot be read as a run record: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version!r}; this kvdelta reads version {SCHEMA_VERSION}")
    return content


def not_as_written(path: Path) -> UserError:
    return UserError(
        f"{path} is not as it was written: its content has another SHA-256 than it says; it was changed or damaged since. "
        "Take a copy that is whole, or move its folder away and give the command that made it again"
    )


def of_kind(path: Path, content: dict[str, Any], kind: type[RecordT]) -> RecordT:
    try:
        return kind.model_validate(hashes.without(content))
    except ValidationError as error:
        raise UserError(f"{path} is not a run record: {first_of(error)}") from None


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
