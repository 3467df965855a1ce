"""Is every context long enough for a scheme? Said in words of tasks: the line of the file, or --length."""

from collections.abc import Sequence
from typing import Any

from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.tasks.options import TaskOptions
from kvdelta.harness.tasks.samples import Sample
from kvdelta.harness.tasks.task_file import place
from kvdelta.schemes.errors import UserError

MOST = 2**20  # tokens: what is refused there is not for its length


def check_lengths(contender: Contender, model: Any, how: TaskOptions, given: Sequence[Sample]) -> None:
    """UserError where the shortest context is too short for a scheme, with its tokens and how many there have to be; and where it cannot
    be used with this model at all."""
    if how.generated:
        _check(contender, model, min(how.lengths), "contexts have", "give a longer --length")
    if given:
        shortest = min(given, key=lambda sample: len(sample.context))
        where = place(how.task_file or "", shortest.line or 0)
        _check(contender, model, len(shortest.context), f"{where}: its context has", "give a longer context")


def _check(contender: Contender, model: Any, length: int, whose: str, instead: str) -> None:
    try:
        contender.check(model, length)
    except UserError:
        enough = _enough(contender, model, length)
        if enough is None:
            raise
        raise UserError(
            f"{whose} {length} token{'s' * (length != 1)}, too few for {contender.label}, which needs {enough} to change "
            f"anything; {instead}, or leave this scheme out"
        ) from None


def _enough(contender: Contender, model: Any, short: int) -> int | None:
    """The least length that will do; None: its length is not why it is refused."""
    enough = 2 * short
    while not _fits(contender, model, enough):
        if enough > MOST:
            return None
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if _fits(contender, model, middle) else (middle, enough)
    return enough


def _fits(contender: Contender, model: Any, length: int) -> bool:
    try:
        contender.check(model, length)
    except UserError:
        return False
    return True
