"""Samples as tokens. Context, question and answers are tokenized by themselves and joined, lines of the context too, so what is
scored is what follows; the pieces end where tokenizers split anyway: behind a newline, before a space.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from kvdelta.harness.subject.windows import Window
from kvdelta.harness.tasks.drafts import TASKS, Draft
from kvdelta.harness.tasks.haystack import Haystack, encoded
from kvdelta.harness.tasks.levels import LADDERS, Level, named
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Token ids of the context, which the cache holds, and of the question and the answer, which come after it.

    length: asked of the context; 0 of the user's own, which are as they are. number: among those of a task and length. depth: asked of
    what is asked for, and at: where in the context its line begins (0 … 1); None where it is no single line. spans: of each
    answer, in the answer's tokens. chance: of a match, by guessing; None: unknown. line: in the user's own file.
    """

    task: str
    length: int
    number: int
    context: tuple[int, ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    chance: float | None = None
    depth: float | None = None
    at: float | None = None
    line: int | None = None

    @property
    def window(self) -> Window:
        """Its context is the prefix, its question and answer the suffix."""
        tokens = torch.tensor([*self.context, *self.question, *self.answer])
        return Window(self.number, 0, tokens, len(self.context))

    @property
    def sha256(self) -> str:
        return _hash([*self.context, *self.question, *self.answer])

    @property
    def context_sha256(self) -> str:
        """The same in all samples that ask something of one context."""
        return _hash(self.context)


@dataclass(frozen=True)
class Maker:
    """Makes samples of the tasks for one model's tokenizer. bos: begins every context; haystack: of tasks that hide lines in a text. positions:
    of the model, None without a limit."""

    tokenizer: Any
    bos: int | None
    haystack: Haystack
    seed: int
    positions: int | None = None

    def sample(
        self, task: str, level: Level, length: int, number: int, depth: float, *, searching: bool = False
    ) -> Sample:
        """Of the same seed and number always the same. searching: of others than are scored. UserError: a context that is too
        short for the level; an answer that is not in the vocabulary."""
        seed = f"{self.seed} {task} {length} {number} {'search' if searching else 'score'}"

        def draft(many: int) -> Draft:
            return TASKS[task](random.Random(seed), level, depth, many)

        drafted = draft(1)
        if drafted.places is None:
            drafted = self._filled(draft, task, level, length)
        if drafted.tied:
            raise _too_short(task, level, length)
        context, at = self._context(drafted, random.Random(f"{seed} haystack").random(), task, level, length)
        question, pieces = drafted.question, _pieces(drafted)
        ids = encoded(self.tokenizer, [question, *pieces])
        check_known(self.tokenizer, ids[1:], drafted.answers, f"task {task}")
        total = len(context) + sum(map(len, ids))
        if self.positions is not None and total > self.positions:
            raise UserError(
                f"task {task} has {total} tokens with its question and answer, the model has {self.positions} positions; give a "
                "shorter --length"
            )
        return Sample(
            task=task,
            length=length,
            number=number,
            context=tuple(context),
            question=tuple(ids[0]),
            answer=tuple(token for piece in ids[1:] for token in piece),
            spans=spans_of(ids[1:]),
            chance=drafted.chance,
            depth=None if drafted.asked is None else depth,
            at=at,
        )

    def levels(self, task: str, length: int) -> list[int]:
        """Those of its ladder, from 1, that a context of this length has room for. UserError where it has none even for the easiest."""
        fits = []
        for number, level in enumerate(LADDERS[task], 1):
            try:
                self.sample(task, level, length, 0, 0.0, searching=True)
            except NoRoom:
                if number == 1:
                    raise
            else:
                fits.append(number)
        return fits

    def _intro(self, draft: Draft) -> list[int]:
        return [*([] if self.bos is None else [self.bos]), *encoded(self.tokenizer, [draft.intro])[0]]

    def _filled(self, draft: Any, task: str, level: Level, length: int) -> Draft:
        """The draft of as many lines, or words, as a context has room for."""

        def fits(many: int) -> bool:
            one = draft(many)
            return len(self._intro(one)) + sum(map(len, encoded(self.tokenizer, one.lines))) <= length

        least, most = 2, 4
        if not fits(least):
            raise _too_short(task, level, length)
        while fits(most):
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return draft(least)

    def _context(
        self, draft: Draft, start: float, task: str, level: Level, length: int
    ) -> tuple[list[int], float | None]:
        """Its tokens, and where the line that is asked for begins, in shares of it."""
        intro, lines = self._intro(draft), encoded(self.tokenizer, draft.lines)
        if draft.places is None:
            ordered, asked = lines, draft.asked
        else:
            room = length - len(intro) - sum(map(len, lines))
            if room < length // 4:  # what is hidden in so little is not hidden
                raise _too_short(task, level, length)
            straw = self.haystack.cut(start, room)
            ordered, asked = _hidden(straw, lines, draft.places, draft.asked)
        ends = [len(intro), *accumulate(map(len, ordered), initial=len(intro))][1:]
        context = [*intro, *(token for line in ordered for token in line)]
        return context, None if asked is None else ends[asked] / len(context)


def _hidden(
    straw: Sequence[Sequence[int]], needles: Sequence[Sequence[int]], places: Sequence[float], asked: int | None
) -> tuple[list[Sequence[int]], int | None]:
    """Each needle between the two lines that are nearest to its place; where the one that is asked for then stands."""
    ends = np.array([0, *accumulate(map(len, straw))])
    gaps = [int(np.abs(ends - place * ends[-1]).argmin()) for place in places]
    order = sorted(range(len(needles)), key=lambda i: (gaps[i], places[i]))
    mixed: list[Sequence[int]] = []
    found, line = None, 0
    for i in order:
        mixed += straw[line : gaps[i]]
        line = gaps[i]
        found = len(mixed) if i == asked else found
        mixed.append(needles[i])
    return [*mixed, *straw[line:]], found


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()


def _pieces(draft: Draft) -> list[str]:
    """Of the answer: each with what stands before it."""
    return [(draft.joiner if i else draft.lead) + answer for i, answer in enumerate(draft.answers)]


def spans_of(pieces: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    ends = list(accumulate(map(len, pieces), initial=0))
    return tuple(pairwise(ends))


def check_known(tokenizer: Any, pieces: Sequence[Sequence[int]], answers: Sequence[str], where: str) -> None:
    """UserError for an answer without a token, or with the one that stands for all that is unknown."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    for ids, answer in zip(pieces, answers, strict=True):
        if not ids or unknown in ids:
            raise UserError(
                f"{where}: the answer {answer!r} is not in the vocabulary of this model's tokenizer, so no model can give it; "
                "give another answer, or another --model"
            )


class NoRoom(UserError):
    """A context is too short for a level."""


def _too_short(task: str, level: Level, length: int) -> NoRoom:
    return NoRoom(
        f"task {task} ({named(level)}): a context of {length} tokens has no room for it; give a longer --length"
    )
