"""What a user asks of a command that scores windows. Light: no torch, so that `--help` is quick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from kvdelta.schemes.errors import UserError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Options:
    """Model, text and windows of a comparison; each field but `offset`, `command` and `flags` is a flag of the same name.

    Lengths in tokens; windows=None is all. Raises UserError for values that do not go together.
    """

    model: str | None = _flag(None, "hub id, local folder or GGUF file; default: the packaged SmolLM2-135M-Instruct")
    revision: str | None = _flag(None, "revision of a hub id")
    trust_remote_code: bool = _flag(False, "run the Python code that a model brings, as transformers would")
    text: str | None = _flag(
        None,
        "wikipedia-excerpt (the default), python-stdlib (code), a text file, JSON lines of chats, wikitext-2, wikitext-103, pg19, c4, "
        "code, or hf:NAME:SPLIT:FIELD of any data set",
    )
    windows: int | None = _flag(8, "how many windows, or all")
    until_se: float | None = _flag(
        None,
        "stop when each scheme's standard error of ΔNLL, in nats a token, is under this; looks after 16, 32, 64, … windows",
    )
    window_length: int = _flag(2048, "tokens of a window")
    score_length: int = _flag(512, "tokens of the suffix, which reads the cache")
    stride: int | None = _flag(None, "tokens from one window to the next; default: the score length")
    protocol: str = _flag("two-pass", "two-pass, stepwise or single-pass")
    step: int | None = _flag(None, "tokens per forward in stepwise")
    batch: str = _flag(
        "auto",
        "windows that go through the model together; auto: what fits a GPU; on a CPU 1, and in short steps what fills them",
    )
    bos: str = _flag("auto", "begin a window with BOS: auto, always or never")
    device: str | None = _flag(None, "cpu, cuda, cuda:1, …; default: cuda where there is one")
    device_map: str | None = _flag(
        None, "auto: spread a model that is larger than one GPU over all of this machine, as accelerate does"
    )
    tensor_parallel: bool | None = _flag(
        None, "spread a model's heads over the processes of torchrun, as transformers does, in place of windows"
    )
    dtype: str | None = _flag(None, "float16 (default on a GPU), float32 (on a CPU) or bfloat16")
    seed: int = _flag(0, "of caches that draw, and of bootstraps; a scheme that draws has its own, turboquant:seed=1")
    out: str | None = _flag(None, "run folder; default: one under runs/, named by the settings")
    wait: bool = _flag(False, "where another process writes the run folder, wait until it has ended")
    retry_failed: bool = _flag(False, "score the rows again that have failed")
    drop: list[str] | None = _flag(None, "go on without this scheme, whose row ends here; repeatable")  # noqa: RUF009 it is None
    time_limit: float | None = _flag(
        None, "seconds that a scheme or cache may take for a batch of windows, before its row fails"
    )
    same_text: bool = _flag(False, "score a scheme on tokens that its calibration, or its map, was made from")
    offset: int = 0  # tokens of the text before its first window: so windows of several prefixes score the same tokens
    command: str = "kvdelta.harness.compare(…)"
    flags: Mapping[str, Any] = field(
        default_factory=dict, compare=False
    )  # those of the command, with what they came to

    def by(self, protocols: Sequence[str], steps: Sequence[int] = ()) -> "list[Options]":
        """The same by several protocols, stepwise once for each step; the folder of each lies in `out`."""
        ways: list[tuple[str, int | None]] = []
        for protocol in protocols:
            ways += [("stepwise", step) for step in steps or (None,)] if protocol == "stepwise" else [(protocol, None)]
        if steps and "stepwise" not in protocols:
            raise UserError(
                f"step={steps[0]} belongs to the stepwise protocol; add --protocol stepwise or leave it out"
            )
        several = len(once := list(dict.fromkeys(ways))) > 1
        folders = [f"{protocol}-{step}" if step else protocol for protocol, step in once]
        outs = [f"{self.out}/{folder}" if several and self.out else self.out for folder in folders]
        return [replace(self, protocol=p, step=s, out=out) for (p, s), out in zip(once, outs, strict=True)]

    def __post_init__(self) -> None:
        if self.protocol not in ("two-pass", "stepwise", "single-pass"):
            raise UserError(f"protocol {self.protocol!r}: choose two-pass, stepwise or single-pass")
        if self.protocol == "stepwise" and (self.step is None or self.step < 1):
            raise UserError(
                f"step is {self.step}: stepwise feeds the suffix in chunks of 1 token or more; give --step 16"
            )
        if self.protocol != "stepwise" and self.step is not None:
            raise UserError(
                f"step={self.step} belongs to the stepwise protocol; add --protocol stepwise or leave it out"
            )
        if self.batch != "auto" and not (self.batch.isdecimal() and int(self.batch) >= 1):
            raise UserError(f"batch {self.batch!r}: give a number of windows, 1 or more, or auto")
        if self.device_map is not None and self.device_map not in DEVICE_MAPS:
            raise UserError(f"device_map {self.device_map!r}: choose {', '.join(DEVICE_MAPS)}")
        if self.device_map is not None and self.device is not None:
            raise UserError(
                f"device_map={self.device_map} chooses the devices, and device={self.device} one: leave one of them out"
            )
        if self.tensor_parallel and self.device_map is not None:
            raise UserError(
                f"tensor_parallel spreads a model over processes, and device_map={self.device_map} over the devices of one: leave one "
                "of them out"
            )
        if self.tensor_parallel and self.time_limit is not None:
            raise UserError(
                f"time_limit={self.time_limit:g} may pass in one process and not in another, which with tensor_parallel go on "
                "together: leave one of them out"
            )
        if self.until_se is not None and not 0 < self.until_se < inf:
            raise UserError(f"until_se={self.until_se:g}: give a standard error above 0 in nats a token, such as 0.002")
        if self.time_limit is not None and not 0 < self.time_limit < inf:
            raise UserError(f"time_limit={self.time_limit:g}: give seconds, more than 0, such as 600")
        if self.bos not in ("auto", "always", "never"):
            raise UserError(f"bos {self.bos!r}: choose auto, always or never")
        if self.offset < 0:
            raise UserError(f"offset={self.offset}: the first window begins at token 0 or later; give 0 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: generators take 0 or more, below 2^63; give --seed 0")
