"""How hard a task has to be: so that exact does it often, and not always. Searched with exact alone, on samples that are not scored."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from kvdelta.harness.records.tasks import Cell, Try
from kvdelta.harness.tasks.answering import exactly, mean_answer
from kvdelta.harness.tasks.levels import LADDERS, Level, named
from kvdelta.harness.tasks.samples import Maker, Sample

LOW, HIGH = 0.20, 0.95
"""Shares of matches between which a level tells schemes apart; the lower one of those that guessing does not give."""
MARGIN = 0.5  # nats of an answer that exact must be better than guessing, where it matches seldom


def judged(one: Try) -> str:
    """ "hard", "easy" or "right"."""
    share, guessed = one.match / one.samples, math.exp(-one.chance)
    if share > HIGH:
        return "easy"
    return "hard" if share < guessed + LOW * (1 - guessed) else "right"


def search(
    task: str, length: int, levels: Sequence[int], attempt: Callable[[int], Try], on_note: Callable[[str], None]
) -> Cell:
    """Bisects levels (from 1, easy ones first) until one is right; attempt: exact at a level. Without one: the hardest that is too easy,
    where NLL alone tells schemes apart; without that the easiest, where exact's NLL is better than guessing; else the model cannot."""
    tries: list[Try] = []
    low, high = 0, len(levels) - 1
    while low <= high:
        middle = (low + high) // 2
        tries.append(attempt(levels[middle]))
        if (verdict := judged(tries[-1])) == "right":
            break
        low, high = (middle + 1, high) if verdict == "easy" else (low, middle - 1)
    cell = _chosen(task, length, tries)
    on_note(f"{task}, {length} tokens: {cell.said + ': ' if cell.said else ''}{cell.verdict}")
    return cell


def _chosen(task: str, length: int, tries: list[Try]) -> Cell:
    by_verdict = {verdict: [one for one in tries if judged(one) == verdict] for verdict in ("right", "easy", "hard")}
    if right := by_verdict["right"]:
        best, verdict = right[0], _said(right[0])
    elif easy := by_verdict["easy"]:
        best = max(easy, key=lambda one: one.level)
        verdict = f"{_said(best)}: matches say little, NLL tells schemes apart"
    else:
        best = min(by_verdict["hard"], key=lambda one: one.level)
        if not best.nll < best.chance - MARGIN:
            cannot = f"the model cannot: {_said(best)} at its easiest, where guessing has {best.chance:.1f}"
            return Cell(task=task, length=length, level=None, said="", tries=tries, verdict=cannot, cannot=True)
        verdict = f"{_said(best)}, guessing {best.chance:.1f}: NLL tells schemes apart, matches hardly"
    return Cell(task=task, length=length, level=best.level, said=best.said, tries=tries, verdict=verdict)


def _said(one: Try) -> str:
    return f"exact matches {one.match} of {one.samples}, NLL {one.nll:.2f} an answer"


def attempt(model: Any, maker: Maker, task: str, length: int, depths: Sequence[float], level: int) -> Try:
    """Exact on so many samples as there are depths."""
    values: Level = LADDERS[task][level - 1]
    samples: list[Sample] = [
        maker.sample(task, values, length, number, depth, searching=True) for number, depth in enumerate(depths)
    ]
    match, nll = mean_answer([exactly(model, sample) for sample in samples])
    guess = -sum(math.log(sample.chance or 1.0) for sample in samples) / len(samples)
    return Try(level=level, said=named(values), samples=len(samples), match=match, nll=nll, chance=guess)
