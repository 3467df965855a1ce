"""Levels and thresholds from samples: quantiles of channels, and k-means of one-dimensional numbers."""

import torch
from jaxtyping import Float
from torch import Tensor


def quantile(x: Float[Tensor, "heads tokens channels"], q: float) -> Float[Tensor, "heads channels"]:
    """Over tokens; the nearest rank, since torch.quantile takes 16 million numbers at most."""
    return x.kthvalue(1 + round(q * (x.shape[1] - 1)), dim=1).values


BINS, KMEANS_STEPS = 4096, 200


def weighted_levels(x: Float[Tensor, "n"], weights: Float[Tensor, "n"], count: int) -> Float[Tensor, "count"]:
    """`count` ascending levels in [−1, 1] by k-means, on a histogram of 4096 bins of the weights."""
    bins = ((x.double() + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    mass = torch.zeros(BINS, dtype=torch.float64).scatter_add_(0, bins, weights.double())
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / (BINS / 2) - 1
    share = mass.cumsum(0) / mass.sum()
    levels = centres[
        torch.searchsorted(share, (torch.arange(count, dtype=torch.float64) + 0.5) / count).clamp(max=BINS - 1)
    ]
    for _ in range(KMEANS_STEPS):
        nearest_level = torch.bucketize(centres, (levels[1:] + levels[:-1]) / 2)
        total = torch.zeros_like(levels).scatter_add_(0, nearest_level, mass)
        moment = torch.zeros_like(levels).scatter_add_(0, nearest_level, mass * centres)
        moved = torch.where(total > 0, moment / total.clamp(min=1e-300), levels)
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels.float()
