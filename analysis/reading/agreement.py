"""How well error measures rank what was lost: rank correlations with bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from kvdelta.analysis.reading.error_measures import MEASURES
from kvdelta.analysis.reading.questions import EQUAL_BITS, Question
from kvdelta.analysis.reading.rows import Row

RESAMPLES = 1000
AT_ONCE = 50  # resamples: ranks compare every two points of each

Vector = Float64[np.ndarray, "points"]


@dataclass(frozen=True)
class AgreementRow(Row):
    """How one error measure ranks the damage of a question: Spearman and log–log Pearson with KL, Spearman with ΔNLL,
    each with a 95 % percentile interval of a bootstrap over windows and points together.

    wrong: the interval of the Spearman with KL lies at or below 0, so agreement is excluded. worse: its difference to
    the best measure's excludes 0. pairs, right: pairs of schemes at equal bits, and how many of them it orders as KL;
    None where the points are layers.
    """

    question: str
    measure: str
    label: str
    spearman_kl: float
    spearman_kl_low: float
    spearman_kl_high: float
    pearson_kl: float
    pearson_kl_low: float
    pearson_kl_high: float
    spearman_delta: float
    spearman_delta_low: float
    spearman_delta_high: float
    wrong: bool
    worse: bool
    pairs: int | None = None
    right: int | None = None


CORRELATIONS = ("spearman_kl", "pearson_kl", "spearman_delta")


def ranking(question: Question, seed: int = 0) -> list[AgreementRow]:
    """One row a measure, best first."""
    everything = np.arange(question.windows)
    x, kl, delta = question.draw(everything)
    measured = _agreement(x, kl, delta)
    rng = np.random.default_rng(seed)
    points = len(question.points)
    drawn = []
    for _ in range(RESAMPLES):
        x_w, kl_w, delta_w = question.draw(rng.integers(question.windows, size=question.windows))
        at = rng.integers(points, size=points)
        drawn.append((x_w[:, at], kl_w[None, at], delta_w[None, at]))
    some = (drawn[i : i + AT_ONCE] for i in range(0, RESAMPLES, AT_ONCE))
    sample = np.concatenate([_agreement(*map(np.stack, zip(*few, strict=True))) for few in some], axis=1)
    sample = sample.swapaxes(0, 1)  # [resamples, 3, measures]
    low, high = np.nanpercentile(sample, [2.5, 97.5], axis=0)
    best = int(np.nanargmax(measured[0]))
    behind = np.nanpercentile(sample[:, 0] - sample[:, 0, best : best + 1], 97.5, axis=0)
    rows = []
    for m, name in enumerate(question.measures):
        ends = {"": measured, "_low": low, "_high": high}
        pairs, right = _ordered_pairs(x[m], kl, question.bits) if question.bits is not None else (None, None)
        rows.append(
            AgreementRow(
                question=question.title,
                measure=name,
                label=MEASURES[name].label,
                **{what + end: float(at[k, m]) for k, what in enumerate(CORRELATIONS) for end, at in ends.items()},
                wrong=bool(high[0, m] <= 0),
                worse=bool(m != best and behind[m] < 0),
                pairs=pairs,
                right=right,
            )
        )
    return sorted(rows, key=lambda row: -row.spearman_kl)


def _agreement(x: np.ndarray, kl: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """[3, …, measures] of x [… measures, points], kl and delta that go with it: Spearman with KL, log–log Pearson with KL, Spearman with ΔNLL; nan where nothing varies."""
    return np.stack([_correlation(_ranks(x), _ranks(kl)), _correlation(_log(x), _log(kl)), _correlation(_ranks(x), _ranks(delta))])  # fmt: skip


def _ranks(x: np.ndarray) -> np.ndarray:
    """From 1, along the last axis; equal numbers share their mean rank. nan where a row holds one."""
    below, equal = (compare(x[..., None, :], x[..., :, None]).sum(axis=-1) for compare in (np.less, np.equal))
    return np.where(np.isnan(x).any(axis=-1, keepdims=True), np.nan, below + (equal + 1) / 2)


def _log(x: np.ndarray) -> np.ndarray:
    """Of positive numbers; nan of others (an exact scheme has no logarithm to correlate)."""
    return np.log(np.where(x > 0, x, np.nan))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray | np.floating:
    """Of each row of x with y, over the points where both are numbers."""
    both = np.isfinite(x) & np.isfinite(y)
    n = both.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = np.where(both, x - np.where(both, x, 0).sum(axis=-1, keepdims=True) / n, 0)
        b = np.where(both, y - np.where(both, y, 0).sum(axis=-1, keepdims=True) / n, 0)
        return (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))


def _ordered_pairs(x: Vector, kl: Vector, bits: list[float]) -> tuple[int, int]:
    pairs = [(i, j) for i in range(len(x)) for j in range(i) if abs(bits[i] - bits[j]) <= EQUAL_BITS]
    return len(pairs), sum(bool((x[i] - x[j]) * (kl[i] - kl[j]) > 0) for i, j in pairs)


def agreement_of_windows(question: Question) -> float:
    """The ceiling: Spearman of the points' KL between the even and the odd windows; nan for one window."""
    if question.windows < 2:
        return float("nan")
    halves = [question.draw(np.arange(start, question.windows, 2))[1] for start in (0, 1)]
    return float(_correlation(_ranks(halves[0]), _ranks(halves[1])))
