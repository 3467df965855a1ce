"""Rotations of the channels of a head, and the wrapper that quantizes rotated numbers."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes import kernels
from kvdelta.schemes.base import KV
from kvdelta.schemes.drawing import check_seed, generator
from kvdelta.schemes.wrapping import Decoded, WrappedTensor, Wrapper, in_range

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


def rotate(x: KV, kind: Kind, seed: int, back: bool = False, dtype: torch.dtype | None = None) -> KV:
    """x R, or with `back` x Rᵀ, in float32; with `dtype` clamped to what that can hold, and of that type.

    "hadamard": `hadamard_transform`; "signed-hadamard": the same after random signs; "orthogonal": a random rotation,
    multiplied in float64 so that what is rounded does not depend on the shape."""
    channels = x.shape[-1]
    signs = random_signs(channels, seed, x.device) if kind == "signed-hadamard" else None
    if kind != "orthogonal" and kernels.available(x.device, x.numel()):
        from kvdelta.schemes.kernels import rotation

        if rotation.works(channels):
            return rotation.hadamard(x, signs, back, dtype)
    if kind == "orthogonal":
        matrix = orthogonal(channels, seed, x.device)
        rotated = (x.double() @ (matrix.T if back else matrix)).float()
    elif signs is None:
        rotated = hadamard_transform(x.float())
    else:
        rotated = hadamard_transform(x.float()) * signs if back else hadamard_transform(x.float() * signs)
    return rotated if dtype is None else in_range(rotated, dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedTensor(WrappedTensor):
    kind: Kind
    seed: int

    def restore(self, x: Decoded) -> Decoded:
        return rotate(x, self.kind, self.seed, back=True)

    def dequantize(self) -> KV:
        """As every wrapper; clamped in the pass that rotates."""
        x = self.inner.dequantize()[:, :, : self.tokens]
        return rotate(x, self.kind, self.seed, back=True, dtype=self.dtype)


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
