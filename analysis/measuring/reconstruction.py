"""How far stored keys or values are from the exact ones: sums per head, from which every figure follows.

Sums over windows and heads add up, so a layer's or a scheme's figure is derived from them once, at the end. They stay on the
device: nobody waits for them.
"""

from jaxtyping import Float64
from torch import Tensor

from kvdelta.schemes import KV

Sums = dict[str, Float64[Tensor, "batch heads"]]

NUMBERS = (2, 3)  # the axes of tokens and channels


def reconstruction_sums(x: KV, decoded: KV) -> Sums:
    """error2 ‖x̂−x‖², norm2 ‖x‖², decoded2 ‖x̂‖², dot x·x̂ and max |x̂−x|, each [windows, heads], computed in float64."""
    exact, back = x.double(), decoded.double()
    error = back - exact
    return {
        "error2": error.square().sum(dim=NUMBERS),
        "norm2": exact.square().sum(dim=NUMBERS),
        "decoded2": back.square().sum(dim=NUMBERS),
        "dot": (exact * back).sum(dim=NUMBERS),
        "max": error.abs().amax(dim=NUMBERS),
    }


def predicted_sums(gradient: KV, x: KV, decoded: KV) -> Sums:
    """Loss predicted from one backward pass, with g = ∂(Σ NLL)/∂x and e = x̂ − x, element by element: square
    Σ(g·e)², a diagonal Fisher estimate, and absolute Σ|g·e|, a first-order bound; each [windows, heads]."""
    product = gradient.double() * (decoded.double() - x.double())
    return {"square": product.square().sum(dim=NUMBERS), "absolute": product.abs().sum(dim=NUMBERS)}
