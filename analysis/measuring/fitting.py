"""What a choice may be fitted to: windows that share no token with those that it is scored on."""

from collections.abc import Sequence
from typing import Any

from kvdelta.harness.leaks import seen_text
from kvdelta.harness.options import Options
from kvdelta.harness.records.run import Settings
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.windows import Window, cut_windows
from kvdelta.schemes.errors import UserError


def windows_of(subject: Subject, settings: Settings) -> list[Window]:
    """The windows of a record of the same text, cut again."""
    grid = _grid(subject, settings)
    return [grid[index] for index in settings.windows]


def apart_from(taken: Sequence[Window], options: Options, subject: Subject, count: int, what: str) -> list[Window]:
    """`count` windows of the text that share no token with those taken, prefixes included, spread evenly.

    what: they are for, in words. ValueError where the text has not so many.
    """
    free = [window for window in _grid(subject, options) if not any(overlap(window, other) for other in taken)]
    if not 1 <= count <= len(free):
        raise UserError(
            f"{count} windows {what} are wanted that share no token with the {len(taken)} others; the text has {len(free)}; "
            "take fewer or shorter windows, or a longer text"
        )
    return _spread(free, count)


def halves(options: Options, subject: Subject, first: int, second: int) -> tuple[list[Window], list[Window]]:
    """So many windows of the first half of the text, and of the second, spread evenly in it: none shares a token with one of the
    other half. ValueError where a half has not so many."""
    found = []
    for half, count in zip(_halves(options, subject), (first, second), strict=True):
        if not 1 <= count <= len(half):
            raise UserError(
                f"{count} windows are wanted in a half of the text, which has {len(half)} of {options.window_length} tokens; take fewer "
                "(--windows, --race-windows) or shorter ones (--window-length), or a longer text"
            )
        found.append(_spread(half, count))
    return found[0], found[1]


def _spread(windows: Sequence[Window], count: int) -> list[Window]:
    """So many of them, evenly: each from the middle of its share."""
    return [windows[(2 * i + 1) * len(windows) // (2 * count)] for i in range(count)]


def least_in_half(options: Options, subjects: Sequence[Subject]) -> int:
    """How many windows the second half of the text has, in the model whose tokens give fewest."""
    return min(len(_halves(options, subject)[1]) for subject in subjects)


def _halves(options: Options, subject: Subject) -> tuple[list[Window], list[Window]]:
    grid = _grid(subject, options)
    middle = (grid[0].start + _end(grid[-1])) // 2
    return [one for one in grid if _end(one) <= middle], [one for one in grid if one.start >= middle]


def overlap(a: Window, b: Window) -> bool:
    return a.start < _end(b) and b.start < _end(a)


def fitted_text(subject: Subject) -> dict[str, Any]:
    """What a map keeps of the windows that it was fitted to; spans: their tokens, [first, one past the last)."""
    spans = sorted([window.start, _end(window)] for window in subject.windows)
    return {**seen_text(subject), "spans": spans}


def _grid(subject: Subject, sizes: Settings | Options) -> list[Window]:
    """All windows of the text."""
    return cut_windows(
        subject.tokens,
        window_length=sizes.window_length,
        score_length=sizes.score_length,
        stride=sizes.stride,
        bos_token_id=subject.bos_token_id,
    )


def _end(window: Window) -> int:
    return window.start + len(window.tokens)
