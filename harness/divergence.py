"""The terms of a Kullback–Leibler divergence in float32, without cancellation and without overflow."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

FAR = 40.0
"""Of δ = log q − log p. Beyond it p·(expm1(δ) − δ) is q to the last bit of float64, and exp(δ) overflows float32 from 88."""


def kl_terms(
    delta: Float[Tensor, "*lead n"], p: Float[Tensor, "*lead n"], q: Callable[[], Float[Tensor, "*lead n"]]
) -> Float[Tensor, "*lead n"]:
    """p·(expm1(δ) − δ) with δ = log q − log p: summed over a distribution, KL(p ‖ q) in nats.

    No term is negative, so nothing cancels. q: gives the second distribution, where some δ is beyond FAR, and elsewhere than on
    a CPU always: asking whether one is would wait for the device.
    """
    if delta.device.type == "cpu" and not delta.amax() > FAR:
        return torch.expm1(delta).sub_(delta).mul_(p)
    near = delta.clamp(max=FAR)
    return torch.where(delta > FAR, q(), torch.expm1(near).sub_(near).mul_(p))
