"""The terms of a Kullback–Leibler divergence in float32, without cancellation and without overflow."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FAR = 40.0
"""Of δ = log q − log p. Beyond it p·(expm1(δ) − δ) is q to the last bit of float64, and exp(δ) overflows float32 from 88."""


def kl_terms(
    delta: Float[Tensor, "*lead n"],
    p: Float[Tensor, "*lead n"],
    q_where: Callable[[Bool[Tensor, "*lead n"]], Float[Tensor, "far"]],
) -> Float[Tensor, "*lead n"]:
    """p·(expm1(δ) − δ) with δ = log q − log p: summed over a distribution, KL(p ‖ q) in nats.

    No term is negative, so nothing cancels. q_where: q at the places of a mask. Overwrites delta.
    """
    far = delta > FAR
    delta.clamp_(max=FAR)
    terms = torch.expm1(delta).sub_(delta).mul_(p)
    if far.any():
        terms[far] = q_where(far)
    return terms
