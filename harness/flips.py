"""Right and wrong answers of two schemes on the same samples: whether one is right more often, and by how much."""

from math import sqrt

from scipy import special

QUANTILE = float(special.ndtri(0.975))
HALVINGS = 60  # of an interval of two, to the last bit


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided test (McNemar 1947): of the samples whose answer changed, as many are lost as gained; 1 where none changed.

    lost, gained: samples that only the first, or only the second, has right.
    """
    changed = lost + gained
    return min(1.0, 2 * float(special.bdtr(min(lost, gained), changed, 0.5))) if changed else 1.0


def score_interval(lost: int, gained: int, samples: int) -> tuple[float, float]:
    """The 95 % score interval of the share of right answers that the second has more than the first (Tango 1998, Statistics in Medicine 17).

    It has a width where no answer changed too: ± z²/(samples + z²). lost, gained: as in `mcnemar`; samples: 1 or more, those that did not
    change among them.
    """
    return -_upper(gained, lost, samples), _upper(lost, gained, samples)


def _upper(lost: int, gained: int, samples: int) -> float:
    """The largest difference that the score test at 5 % does not reject, by halving: its statistic falls as the difference grows."""
    low, high = (gained - lost) / samples, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _score(lost, gained, samples, middle) < -QUANTILE:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _score(lost: int, gained: int, samples: int, difference: float) -> float:
    """(observed − expected) / its standard error, which is that of the likeliest shares that have this difference."""
    spread = difference * (1 - difference)
    b = (2 * samples - gained + lost) * difference - gained - lost
    only_lost = (sqrt(b * b + 8 * samples * lost * spread) - b) / (4 * samples)
    variance = samples * (2 * only_lost + spread)
    off = gained - lost - samples * difference
    return off / sqrt(variance) if variance > 0 else (off > 0) * 1e9 - (off < 0) * 1e9
