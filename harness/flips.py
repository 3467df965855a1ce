"""Right and wrong answers of two schemes on the same samples: whether one is right more often."""

from scipy import special


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided test (McNemar 1947): of the samples whose answer changed, as many are lost as gained; 1 where none changed.

    lost, gained: samples that only the first, or only the second, has right.
    """
    changed = lost + gained
    return min(1.0, 2 * float(special.bdtr(min(lost, gained), changed, 0.5))) if changed else 1.0
