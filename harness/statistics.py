"""From sums of losses to perplexities, paired differences and their errors. All in float64.

Losses are negative log-likelihoods (NLL) in nats. The unit of independence is the window: tokens of one
window are correlated, so an error computed as if tokens were independent is too small. The functions named
`iid_*` compute just that, for comparison with llama.cpp's perplexity tool, which reports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import asinh, inf, isnan, log, nan, sqrt

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import ArrayLike
from scipy import special


@dataclass(frozen=True)
class PairedDelta:
    """Mean loss difference of two schemes over the same windows, in nats per token.

    delta: the mean. se: its standard error over windows. low, high: the 95 % t interval. p: two-sided t-test
    of "no difference". With several looks interval and p hold over all of them together.
    p_sign_flip: of the test that changes the signs of the windows' differences: in all ways, exactly, for up to 16 windows, and in 9,999
    drawn ones beyond, where no p is under 1/10,000. It asks that differences are as likely above their centre as below, not that they are
    normal. skewness: of the differences (third
    moment over the 1.5th power of the second); skewed: whether a test at 1 % shows it (D'Agostino 1970, 8 windows or more) and there are
    fewer windows than 25 skewness² (Cochran 1977), so that a t interval holds less than it says: 83 to 91 % in place of 95 for lognormal
    differences with σ = 1 and 6 to 128 windows.
    One window has no spread, and windows that share scored tokens are no independent samples: all but delta and windows
    are then nan.
    """

    delta: float
    se: float
    low: float
    high: float
    p: float
    windows: int
    p_sign_flip: float
    skewness: float
    skewed: bool


def perplexity(nll_sum: ArrayLike, count: ArrayLike) -> float:
    """exp(Σ NLL / Σ tokens), from one total or from sums per window; inf where exp overflows.

    ValueError: empty, NaN, infinite or differently shaped input; a count under 1.
    """
    # Not a mean of window perplexities: exp is convex, so that would weigh bad windows more.
    nll, tokens = _sums_and_counts("nll_sum", np.atleast_1d(nll_sum), np.atleast_1d(count))
    return _exp(nll.sum() / tokens.sum())


def delta_ppl(nll_a_sum: ArrayLike, nll_b_sum: ArrayLike, count: ArrayLike) -> float:
    """Perplexity under scheme a minus perplexity under scheme b, on the same tokens. Errors: `perplexity`."""
    return perplexity(nll_a_sum, count) - perplexity(nll_b_sum, count)


def paired_delta(
    a_sums: ArrayLike,
    b_sums: ArrayLike,
    counts: ArrayLike,
    *,
    independent: bool = True,
    looks: int = 1,
) -> PairedDelta:
    """How much more scheme a loses than scheme b: Δ = mean over windows of (a_w − b_w) / n_w.

    a_sums, b_sums: NLL summed over the scored tokens of each window, [windows]. counts: scored tokens of
    each window, [windows], all equal. The interval is Δ ± t·SE with SE = sd/√W and W − 1 degrees of freedom.
    looks: how often the numbers are looked at at most, if that decides when to stop (Bonferroni: level 1 − 0.05/looks).
    independent: False where windows share scored tokens: then there is no interval, as for one window.
    Differences that are all equal have se 0 and an interval of one point; p is then 1 at Δ = 0, else 0.

    ValueError: NaN or infinite sums (the position is named); different lengths or counts.
    """
    a, n = _sums_and_counts("a_sums", a_sums, counts)
    b, _ = _sums_and_counts("b_sums", b_sums, counts)
    d = (a - b) / _equal(n)
    delta, se = _mean_and_se(d)
    windows = len(d)
    if windows == 1 or not independent:
        return PairedDelta(delta, nan, nan, nan, nan, windows, nan, nan, False)
    tail = 0.025 / looks
    half = float(special.stdtrit(windows - 1, 1 - tail)) * se
    t = abs(delta) / se if se > 0 else inf if delta else 0.0
    p = min(1.0, 2 * looks * float(special.stdtr(windows - 1, -t)))
    flipped = min(1.0, looks * _sign_flip(d))
    return PairedDelta(delta, se, delta - half, delta + half, p, windows, flipped, *_skewness(d))


FLIPPED = 16  # windows up to which all signs are tried
DRAWN = 9_999  # ways that are drawn where there are more windows


def _sign_flip(d: Float64[np.ndarray, " windows"]) -> float:
    """The share of signs that make a mean at least as large as the one that there is. Of all, the first sign may stay, by symmetry; of drawn
    ones, the signs as they are count as one more, which keeps the level (Phipson & Smyth 2010)."""
    if len(d) <= FLIPPED:
        means = np.abs(_signs(len(d)) @ d)
        return float(np.mean(means >= means[0] * (1 - 1e-12)))
    means = np.abs(d.sum() - 2 * (_drawn(len(d)) @ d))
    return float(1 + np.sum(means >= abs(d.sum()) * (1 - 1e-12))) / (1 + DRAWN)


@lru_cache(maxsize=4)
def _drawn(windows: int) -> UInt8[np.ndarray, "ways windows"]:
    """Of each way 1 where a sign changes; the same in every run."""
    return np.random.default_rng(0).integers(0, 2, (DRAWN, windows), dtype=np.uint8)


@lru_cache
def _signs(windows: int) -> Float64[np.ndarray, "ways windows"]:
    """All ways, the first without a change."""
    ways = np.arange(2 ** (windows - 1))[:, None] >> np.arange(windows - 1)
    return np.concatenate([np.ones((len(ways), 1)), 1.0 - 2 * (ways & 1)], axis=1)


def _skewness(d: Float64[np.ndarray, " windows"]) -> tuple[float, bool]:
    """And whether it is shown and matters: the test of D'Agostino (1970), as scipy.stats.skewtest has it, whose module takes a quarter of a second
    to load."""
    if np.ptp(d) <= 1e-12 * np.abs(d).max():  # none that is more than rounding
        return 0.0, False
    n, off = len(d), d - d.mean()
    off /= np.abs(off).max()  # cubes of tiny ones would vanish
    skewness = float(np.mean(off**3) / np.mean(off**2) ** 1.5)
    if n < 8:
        return skewness, False
    y = skewness * sqrt((n + 1) * (n + 3) / (6 * (n - 2)))
    beta = 3 * (n**2 + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    w = sqrt(2 * (beta - 1)) - 1
    z = asinh(y / sqrt(2 / (w - 1))) / sqrt(0.5 * log(w))
    return skewness, bool(2 * special.ndtr(-abs(z)) < 0.01) and n < 25 * skewness**2


def ratio_interval(paired: PairedDelta) -> tuple[float, float, float]:
    """Perplexity ratio a/b with its 95 % interval: exp of Δ, low and high (nan, nan for one window)."""
    return _exp(paired.delta), _exp(paired.low), _exp(paired.high)


def clustered_mean(sums: ArrayLike, counts: ArrayLike, *, independent: bool = True) -> tuple[float, float]:
    """Mean per token of a non-paired score (KL, Δp, top-1), with its standard error over windows.

    sums, counts: score summed over, and number of, the scored tokens of each window, [windows]; counts are
    all equal. The error is nan for one window, and where windows are not independent. ValueError: as `paired_delta`.
    """
    values, n = _sums_and_counts("sums", sums, counts)
    mean, se = _mean_and_se(values / _equal(n))
    return mean, (se if independent else nan)


def holm(p: Sequence[float]) -> list[float]:
    """p-values of one table, adjusted for their number (Holm 1979, step-down), in the order given.

    nan (no test was possible) stays nan and does not count. ValueError: a value outside 0…1.
    """
    for i, value in enumerate(p):
        if not (isnan(value) or 0 <= value <= 1):
            raise ValueError(f"p[{i}] is {value}; a p-value lies in 0…1; pass nan where no test was possible")
    tested = sorted((i for i in range(len(p)) if not isnan(p[i])), key=lambda i: p[i])
    adjusted, largest = [nan] * len(p), 0.0
    for rank, i in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p[i]))  # never below a smaller p's
        adjusted[i] = largest
    return adjusted


def iid_mean(nll: ArrayLike) -> tuple[float, float]:
    """Mean NLL and its error as if tokens were independent: √((Σa²/n − m²)/(n − 1)).

    nll: one value a token, [tokens]. The formula of llama.cpp's perplexity tool; too small on text. The error
    is nan for one token. ValueError: empty, NaN or infinite input.
    """
    a = _finite("nll", nll)
    m = float(a.mean())
    # The mean square of a − m is Σa²/n − m² without its cancellation, so the root is never of a negative.
    return m, (sqrt(float(np.square(a - m).mean()) / (len(a) - 1)) if len(a) > 1 else nan)


def iid_log_ratio(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """ln(PPL_a / PPL_b) and its error as if tokens were independent: √(SE_a² + SE_b² − 2 cov).

    a, b: NLL of the same tokens under two schemes, [tokens]; cov = (Σab/n − m_a·m_b)/(n − 1). The formula of
    llama.cpp's perplexity tool; too small on text. ValueError: NaN, infinite or differently long input.
    """
    x, y = _finite("a", a), _finite("b", b)
    _same_length("a", x, "b", y)
    # Var a + Var b − 2 Cov is Var(a − b): the same number, but it does not cancel when a is close to b.
    return iid_mean(x - y)


def _mean_and_se(x: Float64[np.ndarray, "windows"]) -> tuple[float, float]:
    if len(x) == 1:
        return float(x[0]), nan
    if x.min() == x.max():  # a rounded mean would leave a spread of 1e-17 and an absurd t where there is none
        return float(x[0]), 0.0
    return float(x.mean()), float(x.std(ddof=1)) / sqrt(len(x))


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):  # a destroyed cache may well have a perplexity of inf
        return float(np.exp(x))


def _finite(name: str, values: ArrayLike) -> Float64[np.ndarray, "n"]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}; it must be one axis of at least one value; flatten it")
    if not np.isfinite(x).all():
        i = int(np.argmin(np.isfinite(x)))
        raise ValueError(f"{name}[{i}] is {x[i]}; every value must be finite; run the model in a wider dtype")
    return x


def _sums_and_counts(
    name: str, sums: ArrayLike, counts: ArrayLike
) -> tuple[Float64[np.ndarray, "windows"], Float64[np.ndarray, "windows"]]:
    x, n = _finite(name, sums), _finite("counts", counts)
    _same_length(name, x, "counts", n)
    if n.min() < 1:
        i = int(np.argmin(n))
        raise ValueError(f"counts[{i}] is {n[i]:g}; a window has at least 1 scored token; leave it out")
    return x, n


def _same_length(name: str, x: np.ndarray, other: str, y: np.ndarray) -> None:
    if len(x) != len(y):
        raise ValueError(f"{name} has {len(x)} values, {other} {len(y)}; they must pair; take common windows only")


def _equal(counts: Float64[np.ndarray, "windows"]) -> float:
    # Were counts unequal, a plain mean over windows would not be the mean per token, and they never are.
    if counts.min() != counts.max():
        raise ValueError(
            f"counts go from {counts.min():g} to {counts.max():g}; windows must have equally many scored "
            "tokens; take windows of one score_length"
        )
    return float(counts[0])
