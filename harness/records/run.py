"""The run record: run.json (typed, versioned), timings.json, and per-token arrays, one file a window.

Everything that a table shows is recomputed from here. While a run goes, run.json is as it was when it began or went on, and what
each batch adds is a line of the journal beside it, run.journal.
"""

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.records import journal
from harness.records.writing import load_arrays, save_arrays, write_file
from schemes.errors import UserError
from schemes.given import parse_json, read_bytes
from schemes.references import identity_of

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
RECORD_FILES = (RUN_FILE, "outliers.json", "errors.json", "sensitivity.json")


class Typed(BaseModel):
    """A part of a record: no field more than those named, each of its type."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Settings(Typed):
    """What decides the numbers; its hash names the run. Names, versions and hashes, no path of this machine."""

    model: dict[str, str]
    text_sha256: str  # of the token ids
    protocol: Literal["two-pass", "stepwise", "single-pass"]
    step: int | None
    window_length: int
    score_length: int
    stride: int
    windows: list[int]  # positions in the grid; with until_se a run may score fewer
    offset: int = 0  # tokens of the text before the grid
    bos_token_id: int | None  # replaces the first token of each window
    device: str
    dtype: str
    attention: str
    seed: int
    contenders: list[Annotated[str, AfterValidator(identity_of)]]  # in the order of the table; the first is exact
    versions: dict[str, str]
    batch: int | Literal["auto"] = 1  # windows that go through the model together, as asked for
    commit: str | None = None  # of the code (harness.records.provenance); None: installed, or from before it was kept
    measures: int = 0  # version of the measures, raised by hand; 0: from before it was kept
    until_se: float | None = None  # nats a token: the run stops when every standard error of ΔNLL is under it
    measured: dict[str, Any] = {}  # what a measurement's numbers also depend on: layers, heads, sides

    @property
    def advance(self) -> int | None:
        """Tokens from one window to the next, the least among those chosen; None for one window."""
        pairs = pairwise(sorted(self.windows))
        return min((later - earlier) * self.stride for earlier, later in pairs) if len(self.windows) > 1 else None

    @property
    def independent(self) -> bool:
        """Whether no token is scored in two windows; else their losses are no independent samples."""
        return self.advance is None or self.advance >= self.score_length - 1


def named(settings: Settings) -> str:
    """The protocol with its step: "two-pass", "stepwise (step 16)"."""
    return settings.protocol + (f" (step {settings.step})" if settings.step else "")


class Bytes(Typed):
    """Of one side (or of both, where they cannot be told apart), at the prefix length, summed over quantized layers. held: by part; counted: with exact tokens at
    16 bits; elements: numbers that they stand for."""

    held: dict[str, int]
    counted: float
    elements: int


class ContenderRecord(Typed):
    """One scheme (or foreign cache) of the run. note: what it really does, where that is not a scheme of ours."""

    label: str  # what the user typed
    name: str  # the canonical spec
    lossless: bool
    quantized_sides: list[str]
    spec: dict[str, Any]
    quantized_layers: list[int]
    lossy_layers: dict[str, list[int]] | None = (
        None  # by side, those that do not keep it exactly; None in older records
    )
    bytes: dict[str, Bytes] | None  # by side, of foreign caches under "both"; None: not measurable
    note: str = ""
    window_by_window: bool = False  # though the run takes several together
    evicts: bool = False  # drops tokens, which changes what is attended
    kl_999: float | None = (
        None  # nats: the 99.9 % quantile over all scored tokens; None: failed, running, or an older record
    )
    error: str | None = None  # why it has no score: one line; its sums are NaN from the window on where it failed


Sum = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # NaN is null on disk


class WindowRecord(Typed):
    """Sums over the scored tokens of one window, in the order of `Settings.contenders`; NaN where one had failed."""

    index: int
    start: int
    count: Annotated[int, Field(gt=0)]
    nll: list[Sum]
    kl: list[Sum]
    tvd: list[Sum] = []  # none in older records
    top1: list[int]
    probability: list[Sum]  # of the target: its difference between contenders is Δp
    key_pairs: list[int]  # read from packed storage
    value_pairs: list[int]
    pairs: list[int]  # attended


class NoiseFloor(Typed):
    """How far an exact cache moves when it is evaluated by another route, the largest over routes. delta_nll: of the mean
    over all scored tokens of the run; kl: mean, nats a token. routes: of each the tokens compared, the root mean square
    of their NLL differences, and their mean KL.

    In records from before the root mean square, delta_nll is the |mean| of one window's differences.
    """

    delta_nll: float
    kl: float
    routes: dict[str, dict[str, float]]


class LayerReads(Typed):
    """Attended pairs of one layer over all windows: all, and those read from packed storage by side."""

    pairs: int
    key: int
    value: int


class Audit(Typed):
    """By contender. unmoved_by_zeroed_codes: by side, the layers that read the same bits with their codes zeroed. reads: by
    layer; empty in older records. failures: why its row cannot be believed; empty when all is well."""

    identity_is_exact: bool | None = None
    zeroed_codes_move_logits: dict[str, bool] = {}
    unmoved_by_zeroed_codes: dict[str, dict[str, list[int]]] = {}
    reads: dict[str, dict[int, LayerReads]] = {}
    failures: dict[str, list[str]] = {}


class Header(Typed):
    """What every record begins with."""

    schema_version: int = SCHEMA_VERSION
    kvdelta: str
    status: Literal["running", "complete"] = "running"
    command: str
    commit: str | None
    model_name: str
    text_name: str
    text_source: dict[str, str]
    text_tokens: int
    layers: int  # of the model
    threads: int  # of the CPU
    settings: Settings

    @property
    def scored(self) -> list[int]:
        """The positions in the grid that the figures are of."""
        return self.settings.windows


HeaderT = TypeVar("HeaderT", bound=Header)
RecordT = TypeVar("RecordT", bound=Typed)


class Run(Header):
    """A comparison: what `kvdelta compare` leaves in run.json."""

    batch: int = 1  # windows that go through the model together, from here on
    batches: list[int] = []  # how many those in `windows` were, one batch after another; none in older records: all one
    contenders: list[ContenderRecord]
    noise_floor: NoiseFloor | None = None
    windows: list[WindowRecord] = []
    audit: Audit = Audit()
    summary: list[dict[str, Any]] = []
    ended: str | None = None  # with until_se: after how many windows it stopped, and why, in words

    @property
    def scored(self) -> list[int]:
        return sorted(window.index for window in self.windows)


class Entry(Typed):
    """What a batch adds to a run: an entry of its journal. batch: windows a batch from here on. contenders: None where they are as
    before. seconds: what the batch took, as in timings.json; wall: seconds since the entry before."""

    windows: list[WindowRecord]
    batch: int
    contenders: list[ContenderRecord] | None
    audit: Audit
    noise_floor: NoiseFloor | None
    seconds: dict[str, list[float]]
    wall: float


def run_folders(folder: Path) -> list[Path]:
    """The folder, or those in it where it holds a comparison by several protocols: in the order in which they were asked for
    as far as one can tell, two-pass first, then long steps before short ones. Those in its folders, where it is a sweep's."""
    if os.path.isfile(folder / RUN_FILE):  # False too where the system refuses the name
        return [folder]
    found = [one.parent for one in folder.glob(f"*/{RUN_FILE}")] or [
        one.parent for one in folder.glob(f"*/*/{RUN_FILE}")
    ]
    steps = {one: one.name.removeprefix("stepwise-") for one in found}
    return sorted(found, key=lambda one: (one.parent, -int(steps[one]) if steps[one].isdecimal() else -math.inf)) or [
        folder
    ]


def save_run(run: Run, folder: Path, file: str = RUN_FILE) -> None:
    """All of it, so that the journal is not needed any more."""
    write_file(folder / file, (run.model_dump_json(indent=1) + "\n").encode())
    journal_of(folder, file).unlink(missing_ok=True)


def journal_of(folder: Path, file: str = RUN_FILE) -> Path:
    return (folder / file).with_suffix(".journal")


def entries_of(folder: Path, file: str = RUN_FILE) -> list[Entry]:
    """What the journal has; UserError where it is another version's."""
    path = journal_of(folder, file)
    try:
        return [Entry.model_validate(parse_json(line)) for line in journal.read(path)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; delete it, and its windows are scored again"
        ) from None


def _with_entries(run: Run, entries: Sequence[Entry]) -> Run:
    have = {window.index for window in run.windows}
    for entry in entries:
        if have & {window.index for window in entry.windows}:  # saved in run.json when the run was ended
            continue
        if not run.batches:
            run.batches = [1] * len(run.windows)
        run.windows += entry.windows
        run.batches.append(len(entry.windows))
        run.batch, run.audit, run.noise_floor = entry.batch, entry.audit, entry.noise_floor
        run.contenders = run.contenders if entry.contenders is None else entry.contenders
    return run


def save_tokens(folder: Path, window: int, arrays: dict[str, np.ndarray]) -> None:
    """nll, kl, tvd float32 and top1 bool, [contenders, scored]."""
    # losses hardly compress, by a fifth, and trying takes longer than scoring a window on a GPU
    save_arrays(folder / "tokens" / f"{window:06d}.npz", arrays, compressed=False)


def load_tokens(folder: Path, window: int) -> dict[str, np.ndarray]:
    return load_arrays(folder / "tokens" / f"{window:06d}.npz")


def has_tokens(folder: Path) -> bool:
    """Runs of record are kept without their per-token arrays, which are megabytes."""
    return (folder / "tokens").is_dir()


def load_each(folder: Path, run: Run, what: str) -> np.ndarray:
    """ "nll" or "kl" of every scored token in nats, float64 [contenders, windows × scored]; UserError where a file is gone."""
    arrays = [load_tokens(folder, window.index)[what] for window in run.windows]
    return np.concatenate(arrays, axis=1).astype(np.float64)


def load_run(folder: str | Path, file: str = RUN_FILE) -> Run:
    """Read a run folder; ValueError as `read_record`. A row whose sums are not finite has failed; older records
    do not say so."""
    run = _with_entries(read_record(folder, file, Run), entries_of(Path(folder), file))
    series = [
        [w.nll, w.kl, w.top1, w.probability, w.key_pairs, w.value_pairs, w.pairs, *([w.tvd] if w.tvd else [])]
        for w in run.windows
    ]
    if {len(one) for window in series for one in window} - {len(run.contenders)}:
        raise UserError(
            f"{Path(folder) / RUN_FILE} is not a run record: a window has not a figure for each of its schemes"
        )
    for i, contender in enumerate(run.contenders):
        bad = [w.index for w in run.windows if not all(map(math.isfinite, (w.nll[i], w.kl[i], w.probability[i])))]
        if bad and contender.error is None:
            contender.error = f"NaN or infinite losses or KL in window {bad[0]}"
    return run


def read_record(folder: str | Path, name: str, kind: type[RecordT]) -> RecordT:
    """Read one kind of record; ValueError where there is none, or one of another schema version."""
    path = Path(folder) / name
    try:
        content = parse_json(read_bytes(path, "record"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run folder: there is no {name} in it") from None
    except (OSError, ValueError) as error:  # no text, no JSON, JSON without end
        raise UserError(f"{path} cannot be read as a run record: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}; this kvdelta reads version {SCHEMA_VERSION}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a run record: {first_of(error)}") from None


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
