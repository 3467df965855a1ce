"""What a race ended with: recommend.json, beside the records of its rounds and of its verification."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.records.run import Typed, first_of
from harness.records.writing import write_file
from schemes.errors import UserError
from schemes.given import parse_json, read_bytes

RECOMMENDATION_FILE = "recommend.json"


class Recommendation(Typed):
    """heading: of what it is, a line each; none in older records. said: the sentences. race, verified: rows of the tables."""

    command: str
    commit: str | None
    budget: float
    by: Literal["nll", "kl"]
    models: list[str]
    heading: list[str] = Field(default_factory=list)
    recommended: str
    said: list[str]
    candidates: list[dict[str, Any]]
    race: list[dict[str, Any]]
    verified: list[dict[str, Any]]

    def as_json(self) -> str:
        return self.model_dump_json(indent=1)


def save_recommendation(one: Recommendation, folder: Path) -> None:
    write_file(folder / RECOMMENDATION_FILE, (one.as_json() + "\n").encode())


def has_recommendation(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / RECOMMENDATION_FILE)


def load_recommendation(folder: str | Path) -> Recommendation:
    """UserError where it cannot be read."""
    path = Path(folder) / RECOMMENDATION_FILE
    try:
        return Recommendation.model_validate(parse_json(read_bytes(path, "record")))
    except ValidationError as error:
        raise UserError(f"{path} is no recommendation: {first_of(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
