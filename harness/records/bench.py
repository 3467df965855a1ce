"""The record of a bench, bench.json: every time that was taken, on what and by which command. Tables are made from it alone."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kvdelta.harness.records.record import Record, Typed, read_record, save_record

BENCH_FILE = "bench.json"
BASELINE, AGAIN = "exact", "exact again"
"""A round begins with the one and ends with the other, the same work: what a difference has to exceed."""
PREFILL = "prefill"
TWO_PASS, STEPWISE, CONTROLS = "two-pass", "stepwise", "first windows"
"""What a comparison is timed as."""

BenchKind = Literal["compare", "schemes", "decode"]


class Times(Typed):
    """Of one part of what was timed, in seconds, one a round: "fill", "suffix", "step", … context: tokens in the cache."""

    name: str
    part: str
    context: int
    seconds: list[float]


class Held(Typed):
    """Bytes of a filled cache at the end. resident: all storages that it keeps alive, None where they cannot be known;
    transient: what a step needs on top, at most, while it runs; None on a CPU, where nobody counts."""

    name: str
    context: int
    resident: int | None
    transient: int | None


class Bench(Record):
    """What competed, in turn; the first and last of a round are the exact cache."""

    kind: BenchKind
    kvdelta: str
    command: str
    commit: str | None
    versions: dict[str, str]
    host: dict[str, Any]
    model_name: str
    contenders: dict[str, str]  # canonical names by label, exact first
    device: str
    dtype: str
    threads: int  # of the CPU
    batch: int  # windows at once
    rounds: int
    suffix: int  # tokens that are scored, or steps
    times: list[Times] = Field(default_factory=list)
    held: list[Held] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict)  # by name, why it has no times

    def of(self, name: str, part: str, context: int) -> list[float]:
        """Seconds by round; none where it was not timed."""
        chosen = (t.seconds for t in self.times if (t.name, t.part, t.context) == (name, part, context))
        return next(chosen, [])

    @property
    def contexts(self) -> list[int]:
        return sorted({times.context for times in self.times})

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(times.name for times in self.times))


def load_bench(folder: str | Path) -> Bench:
    """UserError where `folder` holds none."""
    return read_record(folder, BENCH_FILE, Bench)


def save_bench(bench: Bench, folder: Path) -> None:
    save_record(bench, folder / BENCH_FILE)
