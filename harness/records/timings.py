"""What a run's time was spent on: timings.json, which a run that goes on adds to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from kvdelta.harness.records.provenance import host
from kvdelta.harness.records.run_folder import entries_of
from kvdelta.harness.records.writing import write_file
from kvdelta.schemes.given import parse_json, read_bytes

TIMINGS_FILE = "timings.json"


@dataclass(frozen=True)
class Timings:
    """wall: seconds of the run, loading left out. seconds: by what they were spent on, a number each time."""

    wall: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @staticmethod
    def joined(parts: "Sequence[Timings]") -> "Timings":
        """One after another."""
        names = dict.fromkeys(chain(*(one.seconds for one in parts)))
        seconds = {name: [x for one in parts for x in one.seconds.get(name, [])] for name in names}
        return Timings(sum(one.wall for one in parts), seconds)


def save_timings(timings: Timings, folder: Path, processes: int) -> None:
    content = {"host": host(), "processes": processes, "wall": round(timings.wall, 3), "seconds": timings.seconds}
    write_file(folder / TIMINGS_FILE, (json.dumps(content, indent=1) + "\n").encode())


def load_timings(folder: Path, files: Sequence[str]) -> Timings:
    """Of a run that was stopped: what was there when it began or went on, and what the journals of these records have since. A file
    that is not whole costs its timings, and no window."""
    try:
        content = parse_json(read_bytes(folder / TIMINGS_FILE, "record"))
        before = Timings(float(content["wall"]), {name: list(taken) for name, taken in content["seconds"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before = Timings()
    own, *others = [[entry for entry in entries_of(folder, file) if entry is not None] for file in files]
    parts = [Timings(entry.wall, entry.seconds) for entry in own]
    return Timings.joined([before, *parts, *(Timings(0, entry.seconds) for part in others for entry in part)])
