"""Divergences of two distributions in float32, without cancellation and without overflow."""

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


def kl_and_tvd(
    delta: Float[Tensor, "rows n"], p: Float[Tensor, "rows n"], q: Callable[[], Float[Tensor, "rows n"]]
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """KL(p ‖ q) in nats and the total variation distance ½ Σ|p − q|: the share of draws that differ where both draw together
    as often as they can (maximal coupling). As `kl_terms` has it; `delta` is overwritten.

    A p that sums to 1 + ε scales KL by that; a δ that is off by ε in a whole row adds ε²/2.
    """
    if delta.device.type == "cpu" and not delta.amax() > FAR:
        more = torch.expm1(delta)  # q − p is p times this
        kl = torch.sub(more, delta, out=delta).mul_(p).sum(dim=-1)
        return kl, more.mul_(p).abs_().sum(dim=-1) / 2  # vector_norm adds one number after another
    second = q()
    return kl_terms(delta, p, lambda: second).sum(dim=-1), (second - p).abs().sum(dim=-1) / 2
