"""From scores of every token to what a replay's record keeps: sums by bin, slopes, and how long coupled samples agree.

Arrays are [prompts, tokens], float64; position t is the t-th scored token of a prompt, from 1.
"""

from math import sqrt

import numpy as np
from jaxtyping import Float64
from scipy import special

BINS = 8
GRID = 64

PerToken = Float64[np.ndarray, "prompts tokens"]


def edges_of(tokens: int, most: int = BINS) -> list[int]:
    """The last position of each of up to so many bins, as equal as they can be."""
    count = min(most, tokens)
    return [tokens * (i + 1) // count for i in range(count)]


def by_bin(values: PerToken, edges: list[int]) -> list[list[float]]:
    """Sums, by prompt and bin."""
    return np.add.reduceat(values, [0, *edges[:-1]], axis=1).tolist()


def slopes(values: PerToken) -> list[float]:
    """Of each prompt the least-squares slope over position, a token; NaN of a single token."""
    tokens = values.shape[1]
    if tokens == 1:
        return [float("nan")] * len(values)
    centred = np.arange(tokens) - (tokens - 1) / 2
    return (values @ centred / (centred @ centred)).tolist()


def agreement(tvd: PerToken) -> PerToken:
    """S(t) = Π_{i≤t}(1 − TVD_i): that samples drawn as alike as they can be have not departed by t, along the text given."""
    return np.cumprod(1 - tvd, axis=1)


def departure(agree: Float64[np.ndarray, "tokens"]) -> int | None:
    """The first position where half or more have departed; None: beyond the last, or of NaN."""
    below = np.flatnonzero(agree <= 0.5)
    return int(below[0]) + 1 if below.size else None


def departure_interval(agree: PerToken) -> tuple[int | None, int | None] | None:
    """The first and the last position where the 95 % t interval of the mean over prompts holds ½, since that mean only falls; an end of
    None is beyond the last position. None of one prompt, and of NaN."""
    if len(agree) == 1 or np.isnan(agree).any():
        return None
    mean, half = agree.mean(axis=0), float(special.stdtrit(len(agree) - 1, 0.975)) * standard_errors(agree)
    return departure(mean - half), departure(mean + half)


def standard_errors(values: PerToken) -> Float64[np.ndarray, "tokens"]:
    """Of the mean over prompts; NaN of one prompt."""
    if len(values) == 1:
        return np.full(values.shape[1], np.nan)
    return values.std(axis=0, ddof=1) / sqrt(len(values))
