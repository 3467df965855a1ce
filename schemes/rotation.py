"""Rotations of the channels of a head, and the wrapper that quantizes rotated numbers."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from schemes import kernels
from schemes.base import KV
from schemes.drawing import check_seed, generator
from schemes.wrapping import Decoded, WrappedTensor, Wrapper

Matrix = Float[Tensor, "channels channels"]
Kind = Literal["hadamard", "signed-hadamard", "orthogonal"]


def hadamard_transform(x: Decoded) -> Decoded:
    """x H with Sylvester's normalised matrix, which is its own inverse; where the width is no power of two,
    block-diagonal of the largest that fit. By additions alone, so that the last bits depend on no other token."""
    channels = x.shape[-1]
    sizes = [2**i for i in reversed(range(channels.bit_length())) if channels >> i & 1]
    return torch.cat([_transform(part) for part in x.split(sizes, dim=-1)], dim=-1) if len(sizes) > 1 else _transform(x)


def _transform(x: Decoded) -> Decoded:
    size, half = x.shape[-1], 1
    while half < size:
        first, second = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        half *= 2
    return x * size**-0.5


@cache
def orthogonal(channels: int, seed: int, device: torch.device) -> Matrix:
    """Q of a random Gaussian matrix, float64."""
    q, r = torch.linalg.qr(torch.randn(channels, channels, generator=generator(seed), dtype=torch.float64))
    return (q * r.diagonal().sign()).to(device)  # the sign makes Q uniform over rotations


@cache
def random_signs(channels: int, seed: int, device: torch.device) -> Float[Tensor, "channels"]:
    return (torch.randint(0, 2, (channels,), generator=generator(seed)) * 2 - 1).float().to(device)


def rotate(x: KV, kind: Kind, seed: int, back: bool = False) -> Decoded:
    """x R, or with `back` x Rᵀ, in float32. "hadamard": `hadamard_transform`; "signed-hadamard": the same after random signs;
    "orthogonal": a random rotation, multiplied in float64 so that what is rounded does not depend on the shape."""
    if kind == "orthogonal":
        matrix = orthogonal(x.shape[-1], seed, x.device)
        return (x.double() @ (matrix.T if back else matrix)).float()
    signs = None if kind == "hadamard" else random_signs(x.shape[-1], seed, x.device)
    if kernels.available(x.device, x.numel()):
        from schemes.kernels import rotation

        if rotation.works(x.shape[-1]):
            return rotation.hadamard(x, signs, back)
    x = x.float()
    if signs is None:
        return hadamard_transform(x)
    return hadamard_transform(x) * signs if back else hadamard_transform(x * signs)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedTensor(WrappedTensor):
    kind: Kind
    seed: int

    def restore(self, x: Decoded) -> Decoded:
        return rotate(x, self.kind, self.seed, back=True)


@dataclass(frozen=True)
class RotatedQuantizer(Wrapper):
    """The inner quantizer on x R; what it gives is rotated back."""

    kind: Kind = "hadamard"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    @property
    def constants(self) -> bool | str:
        return "a constant vector is no constant after the rotation"

    def quantize(self, x: KV) -> RotatedTensor:
        held = self.inner.quantize(rotate(x, self.kind, self.seed))
        return RotatedTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=held,
            kind=self.kind,
            seed=self.seed,
        )
