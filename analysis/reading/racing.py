"""A race: all run on a few windows, what is shown to lose more than another drops out, and the rest run on.

Successive elimination (Even-Dar, Mannor and Mansour 2006), each comparison paired by window and judged by an interval that holds at
any time (harness.anytime). Over several models a scheme is judged by its worst loss: it is out where, in some model, it is
shown to lose more than another does in every model.

Of K schemes and M models each comparison has level α/((K − 1)·M). So with probability 1 − α, where differences of windows are about
normal, the scheme whose worst loss is truly least is still there at the end: only the comparisons in which it has a part could throw it out, K − 1 others in M models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from kvdelta.harness.anytime import anytime_interval

ALPHA = 0.05
FIRST = 4
"""Windows of the first round: fewer tell next to nothing at any time."""

Losses = Float64[np.ndarray, "schemes models windows"]
Score = Callable[[Sequence[int], int, int], Losses]
"""(schemes, first window, one past the last) → their losses, NaN of one that failed."""


@dataclass(frozen=True, eq=False)
class Standing:
    """Of one that ran. losses [models, windows]: nats a token; lost_to: who was shown to lose less, the one that loses least first; failed:
    it had no figures in some model."""

    losses: Float64[np.ndarray, "models windows"]
    lost_to: tuple[int, ...] = ()
    failed: bool = False

    @property
    def left(self) -> bool:
        return not (self.lost_to or self.failed)

    @property
    def means(self) -> Float64[np.ndarray, "models"]:
        return self.losses.mean(axis=1)

    @property
    def worst(self) -> float:
        """Mean loss in the model where that is most."""
        return float(self.means.max())

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Of the worst: holds at any time, in all models together."""
        ends = np.array([anytime_interval(one, alpha / len(self.losses))[1:] for one in self.losses])
        return float(ends[:, 0].max()), float(ends[:, 1].max())


def rounds(windows: int) -> list[int]:
    """After how many windows the race is looked at: 4, 8, 16, 32, …, and after all."""
    marks = [FIRST]
    while 2 * marks[-1] < windows:
        marks.append(2 * marks[-1])
    return [*(mark for mark in marks if mark < windows), windows]


def race(count: int, score: Score, marks: Sequence[int], alpha: float = ALPHA) -> list[Standing]:
    """Race so many schemes over windows, looked at after each of `marks`, until one is left or the windows are used up."""
    left, found = list(range(count)), [Standing(np.zeros((0, 0))) for _ in range(count)]
    done = 0
    for mark in marks:
        losses = score(left, done, mark)
        for s, new in zip(left, losses, strict=True):
            all_losses = np.concatenate([found[s].losses, new], axis=1) if done else new
            found[s] = Standing(all_losses, failed=bool(np.isnan(new).any()))
        left = [s for s in left if not found[s].failed]
        level = alpha / max(1, (count - 1) * losses.shape[1])
        lost = {s: [o for o in left if o != s and loses_more(found[s].losses, found[o].losses, level)] for s in left}
        for s, others in lost.items():
            found[s] = Standing(found[s].losses, tuple(sorted(others, key=lambda o: found[o].worst)))
        left = [s for s in left if found[s].left]
        done = mark
        if len(left) <= 1:
            break
    return found


def loses_more(
    mine: Float64[np.ndarray, "models windows"], theirs: Float64[np.ndarray, "models windows"], alpha: float
) -> bool:
    """Whether in some model mine are shown to be more than theirs in every model, at any time."""
    return any(all(anytime_interval(one - other, alpha)[1] > 0 for other in theirs) for one in mine)
