"""Sentences with figures in them, and what the records give for these."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.docs.printed import NUMBER, WORDS

PLACE = "{}"
EXIT_CODES = "an exit code; tests/analysis/cli/test_ending.py"
FIGURE = rf"({NUMBER}|{'|'.join(word.title() for word in WORDS)}|{'|'.join(WORDS)})"


@dataclass(frozen=True)
class Claim:
    """text: words as they stand in a page, {} where a figure stands; of links the text in brackets alone. figures: one for each {}, in
    their order; a truth value stands for what the words say and no number does, and must hold."""

    text: str
    figures: Callable[[], Sequence[float | bool]]

    def find(self, page: str) -> list[re.Match[str]]:
        """Where it stands in a page that is one line."""
        parts = [re.escape(part) for part in " ".join(self.text.split()).split(PLACE)]
        return list(re.finditer(rf"(?<!\w){FIGURE.join(parts)}(?!\w)", page))


@dataclass(frozen=True)
class Unchecked:
    """Words with numbers that no record has, as they stand in a page, and why."""

    text: str
    why: str


def values_of(claim: Claim) -> tuple[list[float], bool]:
    """The numbers, and whether the rest holds."""
    given = list(claim.figures())
    numbers = [float(one) for one in given if not isinstance(one, bool)]
    return numbers, all(one for one in given if isinstance(one, bool))


SETTING = re.compile(
    r"\b\d+(?: and \d+|, \d+(?: and \d+)?)? bits?\b|\b\d-bit\b|\bK \d(?:, V \d| and V \d or \d)?\b|\bV \d\b|steps? (?:of )?\d+|pass \d|\b95 %"
    r"|groups of \d+|residual of \d+|Python \d\.\d+|transformers \d\.\d+|\d (?:CPU )?cores|issue \d+|arXiv \d+\.\d+|et al\. \d+|temperature \d|\d+ tokens\b|`[^`]*`"
)
"""Numbers that say what was asked for, not what came out; and what stands in backticks."""
STANDING = re.compile(r"(?<![\w.,/–-])[+−]?\d[\d,.:]*\w*")


def unclaimed(page: str, claims: Sequence[Claim], unchecked: Sequence[Unchecked]) -> list[str]:
    """Numbers of a page in one line that are in no claim, no setting, and not among what is unchecked; each with the words before it."""
    spans = [found.span() for claim in claims for found in claim.find(page)]
    spans += [found.span() for one in unchecked for found in re.finditer(re.escape(one.text), page)]
    spans += [found.span() for found in SETTING.finditer(page)]
    return [
        page[max(0, found.start() - 50) : found.end() + 20]
        for found in STANDING.finditer(page)
        if not any(start <= found.start() < end for start, end in spans)
    ]
