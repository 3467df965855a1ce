"""The record of a replay, replay.json: how the text was sampled, and sums by prompt, scheme and position. The token ids and their
log-probabilities lie beside it (sampled.npz), and the two runs that the sums are from in a folder each."""

import os
from pathlib import Path

import numpy as np
from pydantic import Field

from kvdelta.harness.records.record import Typed, read_record, save_record
from kvdelta.harness.records.run import Header, Run, Sum
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.writing import load_arrays, save_arrays

REPLAY_FILE = "replay.json"
SAMPLED_FILE, FREE_FILE = "sampled.npz", "free-run.npz"
"""tokens: prompts with what the model wrote after them, [prompts, prompt + written], and log_probabilities of what it wrote, natural, by
the exact model at temperature 1 while it wrote, float32 [prompts, written], none in older records; tokens that each row writes by
itself, [rows, prompts, written]."""
STEPS, ONE_FORWARD = "stepwise", "two-pass"
"""The folders of the runs: token by token, and the same tokens in one forward."""


class Sampling(Typed):
    """temperature: None of greedy text. top_p, top_k: what the draw is cut to."""

    temperature: float | None
    top_p: float = 1.0
    top_k: int | None = None


class FreeRun(Typed):
    """The text that a scheme writes by itself, by prompt. length: tokens before the first that ends a text; distinct:
    share of 4-grams that are no repetition, NaN of a text too short to have any; departs: the first token that is another
    than exact's, from 1; None where there is none."""

    length: list[int]
    distinct: list[Sum]
    departs: list[int | None]


class ReplayRow(Typed):
    """One contender. kl, tvd, top1: sums by prompt and bin of positions; one_forward_kl: of the same tokens in one forward.
    slope: by prompt, least squares of KL over position, nats a token for each token more. agree: S(t), the mean over
    prompts of Π(1 − TVD), at the record's grid, with its standard error. departs: where S(t) is ½ or less; None: nowhere.
    departs_interval: the first and the last position where the 95 % t interval of S(t) over prompts holds ½, None of an end that is nowhere;
    None for both of one prompt, and in older records."""

    label: str
    name: str
    kl: list[list[Sum]]
    tvd: list[list[Sum]]
    top1: list[list[int]]
    one_forward_kl: list[list[Sum]] | None
    slope: list[Sum]
    agree: list[Sum]
    agree_se: list[Sum]
    departs: int | None
    departs_interval: tuple[int | None, int | None] | None = None
    note: str = ""  # what was stored of the text, where that is not all
    free_run: FreeRun | None = None


class Replay(Header):
    """Positions count the model's own tokens in the cache: after `t` of them the prediction at position t is made. edges:
    the last position of each bin; grid: positions at which `agree` is kept."""

    sampling: Sampling
    edges: list[int]
    grid: list[int]
    skipped: int = 0  # prompts that were too short
    cut: int = 0  # chats without their middle
    rows: list[ReplayRow] = Field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Positions that are scored."""
        return self.settings.score_length - 1

    @property
    def prompt_length(self) -> int:
        return self.settings.window_length - self.settings.score_length


def load_replay(folder: str | Path) -> Replay:
    """UserError where `folder` holds none."""
    return read_record(folder, REPLAY_FILE, Replay)


def has_replay(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / REPLAY_FILE)  # False too where the system refuses the name


def save_replay(replay: Replay, folder: Path) -> None:
    save_record(replay, folder / REPLAY_FILE)


def load_steps(folder: str | Path) -> Run:
    """The run token by token, with bytes, noise floor and audit."""
    return load_run(Path(folder) / STEPS)


def save_texts(
    replay: Replay, folder: Path, name: str, tokens: np.ndarray, log_probabilities: np.ndarray | None = None
) -> None:
    """Token ids in a file beside the record, whose hash it then knows."""
    arrays: dict[str, np.ndarray] = {"tokens": tokens.astype(np.int32)}
    if log_probabilities is not None:
        arrays["log_probabilities"] = log_probabilities.astype(np.float32)
    replay.files[name] = save_arrays(folder / name, arrays)
    save_replay(replay, folder)


def load_texts(replay: Replay, folder: Path, name: str) -> np.ndarray:
    """UserError where they are not there, or not as they were written."""
    return load_arrays(folder / name, replay.files.get(name, ""))["tokens"].astype(np.int64)


def load_log_probabilities(replay: Replay, folder: Path) -> np.ndarray | None:
    """Of the sampled text; None in older records. UserError as `load_texts`."""
    return load_arrays(folder / SAMPLED_FILE, replay.files.get(SAMPLED_FILE, "")).get("log_probabilities")
