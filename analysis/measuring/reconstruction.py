"""How far stored keys or values are from the exact ones: sums per head, from which every figure follows.

Sums over windows and heads add up, so a layer's or a scheme's figure is derived from them once, at the end.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

Head = Float[Tensor, "heads tokens channels"]
Sums = dict[str, np.ndarray]  # each [heads], float64


def reconstruction_sums(x: Head, decoded: Head) -> Sums:
    """error2 ‖x̂−x‖², norm2 ‖x‖², decoded2 ‖x̂‖², dot x·x̂ and max |x̂−x|, each [heads], computed in float64."""
    exact, back = x.double(), decoded.double()
    error = back - exact
    return {
        "error2": error.square().sum(dim=(1, 2)).cpu().numpy(),
        "norm2": exact.square().sum(dim=(1, 2)).cpu().numpy(),
        "decoded2": back.square().sum(dim=(1, 2)).cpu().numpy(),
        "dot": (exact * back).sum(dim=(1, 2)).cpu().numpy(),
        "max": error.abs().amax(dim=(1, 2)).cpu().numpy(),
    }


def predicted_sums(gradient: Head, x: Head, decoded: Head) -> Sums:
    """Loss predicted from one backward pass, with g = ∂(Σ NLL)/∂x and e = x̂ − x, element by element: square
    Σ(g·e)², a diagonal Fisher estimate, and absolute Σ|g·e|, a first-order bound; each [heads]."""
    product = gradient.double() * (decoded.double() - x.double())
    return {
        "square": product.square().sum(dim=(1, 2)).cpu().numpy(),
        "absolute": product.abs().sum(dim=(1, 2)).cpu().numpy(),
    }
