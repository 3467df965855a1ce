"""Runs of tokens are known again wherever they lie, and only they."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvdelta.harness.subject.token_runs import RUN, seen_runs, shared_runs
from kvdelta.harness.subject.windows import Window, cut_windows

TEXT = torch.randint(0, 50_000, (3000,), generator=torch.Generator().manual_seed(3))
OTHER = torch.randint(0, 50_000, (3000,), generator=torch.Generator().manual_seed(4))


def windows(*spans, text=TEXT):
    return [Window(i, start, text[start:stop], max(1, (stop - start) // 2)) for i, (start, stop) in enumerate(spans)]


@given(st.integers(0, 2800), st.integers(1, 1000), st.integers(0, 2800), st.integers(1, 1000))
def test_of_one_text_they_share_what_their_positions_share(seen_start, seen_length, start, length):
    """To the token, where the seen part is as long as a run."""
    seen = (seen_start, min(len(TEXT), seen_start + max(RUN, seen_length)))
    scored = (start, min(len(TEXT), start + length))
    shared = shared_runs(seen_runs(TEXT, windows(seen)), TEXT, windows(scored))
    assert (shared > 0) == (seen[0] < scored[1] and scored[0] < seen[1])


@given(st.integers(0, 500), st.integers(0, 2500))
def test_a_text_within_a_text(offset, place):
    """A seen part of 2 runs less one token is known at every offset of another text; under half of a run is not."""
    runs = seen_runs(TEXT, cut_windows(TEXT, window_length=600, score_length=100, windows=None))
    longer = torch.cat([OTHER[:place], TEXT[offset : offset + 2 * RUN - 1], OTHER[place:]])
    scored = cut_windows(longer, window_length=300, score_length=100, windows=None)
    assert shared_runs(runs, longer, scored) >= 1
    little = torch.cat([OTHER[:place], TEXT[offset : offset + RUN - 1], OTHER[place:]])
    assert shared_runs(runs, little, scored) == 0


def test_windows_between_those_seen_are_free():
    seen = windows((0, 200), (150, 400), (1000, 1300))
    runs = seen_runs(TEXT, seen)
    assert shared_runs(runs, TEXT, windows((400, 1000), (1300, 3000))) == 0
    assert shared_runs(runs, TEXT, seen) == len(runs) == 7 + 5
    assert shared_runs(runs, OTHER, windows((0, 3000), text=OTHER)) == 0


@pytest.mark.parametrize("length", [1, RUN - 1, RUN, RUN + 1])
def test_short_texts_and_windows(length):
    text = TEXT[:length]
    runs = seen_runs(text, windows((0, length), text=text))
    assert len(runs) == (0 if length < RUN else 1 if length == RUN else 2)
    assert shared_runs(runs, text, windows((0, 1), text=text)) == min(1, len(runs))


def test_the_hash_is_the_same_on_every_machine():
    little_endian = b"".join(token.to_bytes(8, "little") for token in range(RUN))
    text = torch.arange(RUN)
    assert seen_runs(text, windows((0, RUN), text=text)) == [hashlib.sha256(little_endian).hexdigest()[:16]]
