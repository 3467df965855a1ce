"""What the record of a run says (run.json): its settings, its rows, sums by window, and the audit. Every table is recomputed from
it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from kvdelta.harness.records.record import Record, Typed
from kvdelta.schemes.references import identity_of

MATCHED = " (matched)"
"""Ends the label of a row with exact tokens that others of its run have not."""


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
    tensor_parallel: int = 1  # processes that share the model's heads
    measured: dict[str, Any] = Field(
        default_factory=dict
    )  # what a measurement's numbers also depend on: layers, heads, sides

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

    @classmethod
    def total(cls, parts: Sequence["Bytes"]) -> "Bytes":
        """Of several that hold parts of the same names."""
        held = {name: sum(part.held[name] for part in parts) for name in parts[0].held}
        return cls(
            held=held, counted=sum(part.counted for part in parts), elements=sum(part.elements for part in parts)
        )


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
    """Sums over the scored tokens of one window, in the order of `Settings.contenders`; NaN where one had failed. tokens: SHA-256 of its
    file of arrays; empty in older records."""

    index: int
    start: int
    count: Annotated[int, Field(gt=0)]
    nll: list[Sum]
    kl: list[Sum]
    tvd: list[Sum] = Field(default_factory=list)  # none in older records
    top1: list[int]
    probability: list[Sum]  # of the target: its difference between contenders is Δp
    key_pairs: list[int]  # read from packed storage
    value_pairs: list[int]
    pairs: list[int]  # attended
    tokens: str = ""


class NoiseFloor(Typed):
    """How far an exact cache moves when it is evaluated by another route, the largest over routes. delta_nll: of the mean
    over all scored tokens of the run; kl: mean, nats a token. routes: of each the tokens compared, the root mean square
    of their NLL differences, and their mean KL.

    In records from before the root mean square, delta_nll is the |mean| of one window's differences.
    """

    delta_nll: float
    kl: float
    routes: dict[str, dict[str, float]]

    @classmethod
    def of(cls, routes: dict[str, dict[str, float]], scored: int) -> "NoiseFloor":
        """scored: tokens of the run. A mean of n differences of random sign is about rms/√n."""
        return cls(
            delta_nll=max(route["rms"] for route in routes.values()) / math.sqrt(scored),
            kl=max(route["kl"] for route in routes.values()),
            routes=routes,
        )


class LayerReads(Typed):
    """Attended pairs of one layer over all windows: all, and those read from packed storage by side."""

    pairs: int
    key: int
    value: int


class Audit(Typed):
    """By contender. unmoved_by_zeroed_codes: by side, the layers that read the same bits with their codes zeroed. reads: by
    layer; empty in older records. failures: why its row cannot be believed; empty when all is well."""

    identity_is_exact: bool | None = None
    zeroed_codes_move_logits: dict[str, bool] = Field(default_factory=dict)
    unmoved_by_zeroed_codes: dict[str, dict[str, list[int]]] = Field(default_factory=dict)
    reads: dict[str, dict[int, LayerReads]] = Field(default_factory=dict)
    failures: dict[str, list[str]] = Field(default_factory=dict)

    def add_reads(self, label: str, layers: Mapping[int, Any]) -> None:
        """What a contender's layers read in more windows: by layer what has pairs, key and value."""
        sums = self.reads.setdefault(label, {})
        for layer, reads in layers.items():
            before = sums.get(layer, LayerReads(pairs=0, key=0, value=0))
            sums[layer] = LayerReads(
                pairs=before.pairs + reads.pairs, key=before.key + reads.key, value=before.value + reads.value
            )


class Origin(Record):
    """Which command has made a record, with what code and on which model; layers: of the model, threads: of the CPU."""

    kvdelta: str
    status: Literal["running", "complete"] = "running"
    command: str
    flags: dict[str, Any] = Field(
        default_factory=dict
    )  # of the command, with what they came to; --config takes them again
    commit: str | None
    model_name: str
    layers: int
    threads: int


class Header(Origin):
    """What every record of a text begins with."""

    text_name: str
    text_source: dict[str, str]
    text_tokens: int
    settings: Settings
    files: dict[str, str] = Field(
        default_factory=dict
    )  # SHA-256 of those beside it, by name; a run's are with its windows

    @property
    def scored(self) -> list[int]:
        """The positions in the grid that the figures are of."""
        return self.settings.windows


class Run(Header):
    """A comparison: what `kvdelta compare` leaves in run.json."""

    batch: int = 1  # windows that go through the model together, from here on
    batches: list[int] = Field(
        default_factory=list
    )  # how many those in `windows` were, one batch after another; none in older records: all one
    contenders: list[ContenderRecord]
    noise_floor: NoiseFloor | None = None
    windows: list[WindowRecord] = Field(default_factory=list)
    audit: Audit = Field(default_factory=Audit)
    summary: list[dict[str, Any]] = Field(default_factory=list)
    ended: str | None = None  # with until_se: after how many windows it stopped, and why, in words

    @property
    def scored(self) -> list[int]:
        return sorted(window.index for window in self.windows)


class Entry(Typed):
    """What a batch adds to a run, and how the run is with it: an entry of its journal, which can be read without those before it.
    before: windows that the run had (None, and contenders None where they are as before, in older journals). batch: windows a batch from here
    on. seconds: what the batch took, as in timings.json; wall: seconds since the entry before."""

    before: Annotated[int, Field(ge=0)] | None = None
    windows: list[WindowRecord]
    batch: int
    contenders: list[ContenderRecord] | None
    audit: Audit
    noise_floor: NoiseFloor | None
    seconds: dict[str, list[float]]
    wall: float
