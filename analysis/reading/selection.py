"""Layers, heads and sides as a user names them."""

from collections.abc import Sequence

from kvdelta.schemes.errors import UserError

LARGEST = 9999  # layer or head: more than any model has
SIDES = ("key", "value", "both")


def chosen(what: str, named: Sequence[int] | None, existing: Sequence[int]) -> list[int]:
    """Those that a user named, in order, or all; ValueError for one that does not exist."""
    if named is None:
        return list(existing)
    for index in named:
        if index not in existing:
            raise UserError(
                f"{what} {index} does not exist or holds no full-attention cache; there are {spans(existing)}"
            )
    return sorted(set(named))


def indices(text: str) -> list[int]:
    """From "0,5,10-12"; ValueError for anything else."""
    numbers: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{text!r}: give numbers and ranges such as 0,5,10-12")
        span = range(int(first), int(last if dash else first) + 1)
        if not span or span[-1] > LARGEST:
            raise UserError(f"{text!r}: a range goes up, such as 10-12, and no number is over {LARGEST}")
        numbers += span
    return numbers


def spans(numbers: Sequence[int]) -> str:
    """The short form: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def checked_sides(named: Sequence[str]) -> list[str]:
    """Each once; ValueError for what is no side."""
    for side in named:
        if side not in SIDES:
            raise UserError(f"side {side!r}: choose {', '.join(SIDES)}")
    return list(dict.fromkeys(named))
