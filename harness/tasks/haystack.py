"""What the needles lie in: the sentences of any text, as tokens, a line each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvdelta.harness.subject.errors import TextError
from kvdelta.harness.subject.text import Text

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SHORTEST = 20  # characters: headings and the like are left out
MOST = 20_000  # sentences: enough for any context, and a long text is tokenized at once


@dataclass(frozen=True)
class Haystack:
    """Token ids of each line, in the order of the text."""

    lines: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, text: Text, tokenizer: Any) -> "Haystack":
        """TextError where it has no sentence."""
        found = [" ".join(sentence.split()) for sentence in SENTENCE.split(text.content)]
        found = [sentence for sentence in found if len(sentence) >= SHORTEST][:MOST]
        if not found:
            raise TextError(f'the text "{text.name}" has no sentence of {SHORTEST} characters to hide something among')
        return cls(tuple(map(tuple, encoded(tokenizer, [f"{sentence}\n" for sentence in found]))))

    def cut(self, start: float, length: int) -> list[tuple[int, ...]]:
        """Lines of `length` tokens together, from a place in the text (0 … 1) on, round its end; what is too much is cut off the first."""
        at, lines, left = int(start * len(self.lines)), list[tuple[int, ...]](), length
        while left > 0:
            line = self.lines[at % len(self.lines)]
            lines.append(line)
            left -= len(line)
            at += 1
        while left:  # too much: the first lines are shorter by it
            first = lines.pop(0)
            lines[:0] = [first[-left:]] if len(first) > -left else []
            left = min(0, left + len(first))
        return lines


def encoded(tokenizer: Any, pieces: Sequence[str]) -> list[list[int]]:
    """Each piece by itself, without special tokens."""
    return tokenizer(list(pieces), add_special_tokens=False, verbose=False)["input_ids"] if pieces else []
