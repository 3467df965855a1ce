"""What a race ended with: recommend.json, beside the records of its rounds and of its verification."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kvdelta.harness.records.record import Record, read_record, save_record

RECOMMENDATION_FILE = "recommend.json"


class Recommendation(Record):
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
    save_record(one, folder / RECOMMENDATION_FILE)


def has_recommendation(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / RECOMMENDATION_FILE)


def load_recommendation(folder: str | Path) -> Recommendation:
    """UserError where it cannot be read."""
    return read_record(folder, RECOMMENDATION_FILE, Recommendation)
