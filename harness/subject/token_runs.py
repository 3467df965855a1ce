"""Runs of tokens by their hashes: do the tokens that are scored hold any that something was made from?

What was seen is kept as hashes of runs side by side; what is scored is searched at every offset. So a text is known again
inside a longer one, and a part of it inside another part.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch

from kvdelta.harness.subject.windows import Window

RUN = 64  # tokens of a run: what two texts share by chance is shorter
DIGITS = 16  # of a hash: by chance a text of a million tokens shares none with another


def seen_runs(tokens: torch.Tensor, windows: Sequence[Window]) -> list[str]:
    """Hashes of runs that cover the tokens of `windows`, which were cut from `tokens`; none of a text under a run."""
    digest = _digests(tokens)
    starts = {
        min(start, max(stop - RUN, first), len(tokens) - RUN)
        for first, stop in _spans(windows)
        for start in range(first, stop, RUN)
    }
    return [digest(start) for start in sorted(starts) if start >= 0]


def shared_runs(runs: Sequence[str], tokens: torch.Tensor, windows: Sequence[Window]) -> int:
    """How many of `runs`, hashes of what was seen, hold a token of `windows`, which were cut from `tokens`."""
    digest = _digests(tokens)
    last = len(tokens) - RUN
    scored = {
        digest(start)
        for first, stop in _spans(windows)
        for start in range(max(0, first - RUN + 1), min(stop - 1, last) + 1)
    }
    return len(scored & set(runs))


def _digests(tokens: torch.Tensor):
    """The hash of the run that begins at an offset; ids as little-endian int64 bytes, as in `token_sha256`."""
    content = memoryview(tokens.cpu().numpy().astype("<i8").tobytes())
    return lambda start: hashlib.sha256(content[8 * start : 8 * (start + RUN)]).hexdigest()[:DIGITS]


def _spans(windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
    """Where the tokens of windows are in the text, windows that overlap as one: (first, one past the last)."""
    ordered = sorted((window.start, window.start + len(window.tokens)) for window in windows)
    first, stop = ordered[0]
    for start, end in ordered[1:]:
        if start > stop:
            yield first, stop
            first = start
        stop = max(stop, end)
    yield first, stop
