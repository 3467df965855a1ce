"""What fresh windows say of those that a race left: whom to recommend, what it costs, and what it cannot be told from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import special

from kvdelta.analysis.reading.carrying import SAME_BITS
from kvdelta.analysis.reading.racing import ALPHA
from kvdelta.analysis.reading.tables import interval, number, signed

NAMED = 6  # schemes in a sentence

Losses = Float64[np.ndarray, "models windows"]


@dataclass(frozen=True, eq=False)
class Verified:
    """One scheme on fresh windows. losses, nll: nats a token by model and window, of the protocol that decides, in the measure that
    was asked for, and as ΔNLL."""

    scheme: str
    bits: float
    losses: Losses
    nll: Losses

    @property
    def worst(self) -> float:
        return float(self.losses.mean(axis=1).max())


def t_interval(values: Float64[np.ndarray, "windows"], parts: int = 1) -> tuple[float, float, float]:
    """Mean, low and high at 95 %, together with parts − 1 others (Bonferroni); infinite ends of one value."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, -np.inf, np.inf
    half = float(special.stdtrit(count - 1, 1 - ALPHA / 2 / parts)) * float(values.std(ddof=1)) / np.sqrt(count)
    return mean, mean - half, mean + half


def shown_to_lose_more(mine: Losses, theirs: Losses, parts: int) -> bool:
    """Whether in some model mine are more than theirs in every model, beyond an interval that holds for so many comparisons."""
    return any(all(t_interval(one - other, parts)[1] > 0 for other in theirs) for one in mine)


def decide(verified: Sequence[Verified], budget: float) -> int | None:
    """Whom to recommend: the first within the budget, in the order of the race, unless fresh windows show that another within it loses
    less: then of these the one that loses least. None where none is within it."""
    within = [i for i, one in enumerate(verified) if one.bits <= budget + SAME_BITS]
    if not within:
        return None
    first = within[0]
    parts = max(1, (len(verified) - 1) * len(verified[0].losses))
    better = [i for i in within if i != first and shown_to_lose_more(verified[first].losses, verified[i].losses, parts)]
    return min(better, key=lambda i: verified[i].worst, default=first)


def told_apart(verified: Sequence[Verified], chosen: int) -> list[bool]:
    """Of each, whether fresh windows show that it loses more than the chosen one."""
    parts = max(1, (len(verified) - 1) * len(verified[0].losses))
    mine = verified[chosen]
    return [i != chosen and shown_to_lose_more(one.losses, mine.losses, parts) for i, one in enumerate(verified)]


def sentences(
    verified: Sequence[Verified],
    chosen: int,
    baseline: str,
    budget: float,
    measure: str,
    step: int,
    models: Sequence[str],
    unverified: Sequence[str],
    failed: Sequence[str] = (),
) -> list[str]:
    """The recommendation in words. baseline: the label of uniform KIVI; unverified: others that the race did not tell apart; failed: those
    that have no score, and why."""
    best, apart = verified[chosen], told_apart(verified, chosen)
    parts = max(1, (len(verified) - 1) * len(models))
    lines = [f"Within {budget:g} bits: {best.scheme} ({best.bits:.2f} bits)."]
    if chosen and verified[0].bits <= budget + SAME_BITS:
        lines.append(f"{verified[0].scheme} won the race, and lost to it on fresh windows.")
    for model, loss, nll in zip(models, best.losses, best.nll, strict=True):
        delta = t_interval(nll)
        cost = f"ΔNLL {interval(*delta)}"
        if measure == "KL":
            cost = f"KL {loss_of(measure, *t_interval(loss))}, {cost}"
        where = f" on {model}" if len(models) > 1 else ""
        lines.append(
            f"It costs{where}: {cost} nats a token, perplexity × {np.exp(delta[0]):.4f}, on {len(loss)} fresh windows decoded in "
            f"steps of {step}."
        )
    others = [one.scheme for i, one in enumerate(verified) if i != chosen and not apart[i] and one.scheme != baseline]
    kivi = next((i for i, one in enumerate(verified) if one.scheme == baseline), None)
    if kivi == chosen:
        lines.append("That is uniform KIVI itself: nothing that ran was better.")
    elif kivi is not None:
        lines.append(_against_kivi(verified[kivi], best, apart[kivi], budget, measure, parts, models))
    if others:
        lines.append(f"No difference on fresh windows from {some(_sized(verified, others))}.")
    if unverified:
        lines.append(f"Nor did the race tell it from {some(unverified)}, which were not verified.")
    lines += [
        f"Smaller: {one.scheme} ({one.bits:.2f} bits) loses more: {_differences(one, best, measure, parts, models)}."
        for one, worse in zip(verified, apart, strict=True)
        if worse and one.bits < best.bits - SAME_BITS and one.scheme != baseline
    ]
    if len(verified) > 1 and sum(apart) == len(verified) - 1 and not unverified:
        lines.append("Every other candidate that ran was shown to lose more.")
    if failed:
        more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
        lines.append(f"Not judged, since it failed: {failed[0]}{more}.")
    return lines


def _against_kivi(
    kivi: Verified, best: Verified, apart: bool, budget: float, measure: str, parts: int, models: Sequence[str]
) -> str:
    size = f"{kivi.bits:.2f} bits" + (", the smallest that there is" if kivi.bits > budget + SAME_BITS else "")
    said = _differences(kivi, best, measure, parts, models)
    if apart:
        return f"Uniform KIVI ({kivi.scheme}, {size}) loses more: {said}."
    return f"No difference from uniform KIVI ({kivi.scheme}, {size}): {said}."


def _differences(one: Verified, best: Verified, measure: str, parts: int, models: Sequence[str]) -> str:
    """What one loses more than the best, by model."""
    more = [t_interval(mine - other, parts) for mine, other in zip(one.losses, best.losses, strict=True)]
    where = [f" on {model}" if len(models) > 1 else "" for model in models]
    return f"{measure} " + "; ".join(f"{interval(*d)}{place}" for d, place in zip(more, where, strict=True))


def _sized(verified: Sequence[Verified], names: Sequence[str]) -> list[str]:
    return [f"{one.scheme} ({one.bits:.2f} bits)" for one in verified if one.scheme in names]


def loss_of(measure: str, mean: float, low: float, high: float) -> str:
    """A loss with its interval; a KL, which cannot be negative, without a sign."""
    if measure != "KL":
        return interval(mean, low, high) if np.isfinite(low) else signed(mean, 4)
    return number(mean, 2) + (f" [{number(max(0.0, low), 2)}, {number(high, 2)}]" if np.isfinite(low) else "")


def some(names: Sequence[str]) -> str:
    """As many as a sentence holds."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
