"""Windows to fit to share no token with those that are scored, prefixes included."""

from dataclasses import replace

import pytest

from kvdelta.analysis.measuring.fitting import apart_from, fitted_text, overlap, windows_of
from kvdelta.harness.settings import settings_of
from kvdelta.harness.subject.windows import cut_windows


def tokens_of(windows):
    return {token for window in windows for token in range(window.start, window.start + len(window.tokens))}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_windows_apart(subject, options, count):
    fitted = apart_from(subject.windows, options, subject, count, "to fit to")
    assert len({window.index for window in fitted}) == count
    assert not tokens_of(fitted) & tokens_of(subject.windows)


def test_a_text_that_is_too_short_is_refused(subject, options, refused):
    """Every other window of the text shares its prefix with one that is scored."""
    short = replace(subject, tokens=subject.tokens[:600])
    windows = cut_windows(short.tokens, window_length=128, score_length=32, windows=8)
    with refused("2 windows to fit to are wanted that share no token with the 8 others; the text has 0; take fewer or"):
        apart_from(windows, options, short, 2, "to fit to")


def test_windows_overlap_by_one_token(subject):
    first, *_ = cut_windows(subject.tokens, window_length=128, score_length=32)
    near, far = (cut_windows(subject.tokens, window_length=128, score_length=32, stride=s)[1] for s in (127, 128))
    assert overlap(first, near)
    assert overlap(near, first)
    assert not overlap(first, far)


def test_windows_of_a_record_of_another_stride(subject, options):
    """The same positions of two grids are other tokens."""
    windows = cut_windows(subject.tokens, window_length=128, score_length=32, stride=50, windows=4)
    settings = settings_of(replace(options, stride=50), replace(subject, windows=windows), [])
    assert [window.start for window in windows_of(subject, settings)] == [window.start for window in windows]


def test_a_map_keeps_what_it_was_fitted_to(subject):
    text = fitted_text(subject)
    assert text["spans"] == [[window.start, window.start + 128] for window in subject.windows]
    assert {"name", "sha256", "token_sha256", "runs"} <= text.keys()
