"""The math that integer schemes share: x̂ = code · scale + offset, or (code − zero) · scale.

Parameters are rounded to their storage type first; codes are computed with what is stored.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kvdelta.schemes import kernels
from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer
from kvdelta.schemes.grouping import Axis, Grouping, GroupSize
from kvdelta.schemes.packing import check_packable, pack, unpack

FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24  # the least positive float16


def stored_scale(scale: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead"]:
    """A scale as it is stored: float16, never 0 and never infinite."""
    return scale.clamp(FLOAT16_TINY, FLOAT16_MAX).half()


def stored_offset(offset: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead"]:
    """An offset as it is stored: float16, never infinite."""
    return offset.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


@cache
def level_table(levels: tuple[float, ...], device: torch.device) -> Float[Tensor, "levels"]:
    return torch.tensor(levels, dtype=torch.float32, device=device)


@cache
def level_bounds(levels: tuple[float, ...], device: torch.device) -> Float[Tensor, "bounds"]:
    """Half way between neighbours."""
    table = level_table(levels, device)
    return (table[1:] + table[:-1]) / 2


def nearest(x: Float[Tensor, "*lead"], levels: tuple[float, ...]) -> UInt8[Tensor, "*lead"]:
    """The index of the nearest of ascending levels; of two equally near ones the lower."""
    return torch.bucketize(x.contiguous(), level_bounds(levels, x.device)).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and offset of each group, as stored.

    Where `levels` are given, ascending, a code stands for its level instead of itself. Either `offset` is given, x̂ =
    code · scale + offset, or `zero`, the code that stands for 0,
    x̂ = (code − zero) · scale: a number where it is the same for all groups and not stored, an integer tensor
    (codes are round(x / scale) + zero), or a float tensor (codes are round(x / scale + zero)).
    """

    scale: Tensor
    offset: Tensor | None = None
    zero: Tensor | int | None = None
    levels: tuple[float, ...] | None = None

    @property
    def rule(self) -> str:
        """What a fused kernel is told of them."""
        if self.zero is None:
            return "none" if self.offset is None else "offset"
        return "zero" if isinstance(self.zero, Tensor) and self.zero.is_floating_point() else "whole-zero"

    @property
    def other(self) -> Tensor | int | None:
        return self.zero if self.offset is None else self.offset

    def encode(self, groups: Float[Tensor, "*lead group"], max_code: int) -> UInt8[Tensor, "*lead group"]:
        scale = self.scale.float().unsqueeze(-1)
        if self.levels is not None:
            shifted = groups if self.offset is None else groups - self.offset.float().unsqueeze(-1)
            return nearest(shifted / scale, self.levels)
        if self.offset is not None:
            codes = ((groups - self.offset.float().unsqueeze(-1)) / scale).round_()
        elif isinstance(self.zero, Tensor) and self.zero.is_floating_point():
            codes = (groups / scale).add_(self.zero.float().unsqueeze(-1)).round_()
        else:
            zero = self.zero.unsqueeze(-1) if isinstance(self.zero, Tensor) else self.zero or 0
            codes = (groups / scale).round_().add_(zero)
        return codes.clamp_(0, max_code).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "*lead group"]) -> Float[Tensor, "*lead group"]:
        """In float32."""
        x = codes.float() if self.levels is None else level_table(self.levels, codes.device)[codes.int()]
        if self.zero is not None:
            x = x.sub_(self.zero.float().unsqueeze(-1) if isinstance(self.zero, Tensor) else self.zero)
        x = x.mul_(self.scale.float().unsqueeze(-1))
        return x if self.offset is None else x.add_(self.offset.float().unsqueeze(-1))


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineTensor(QuantizedTensor):
    """codes [batch, heads, token groups, bytes]; scale and offset or zero [batch, heads, token groups, groups]."""

    codes: UInt8[Tensor, "batch heads token_groups bytes"]
    scale: Tensor
    offset: Tensor | None
    zero: Tensor | int | None
    levels: tuple[float, ...] | None
    bits: int
    channels: int
    grouping: Grouping

    def dequantize(self) -> KV:
        layout = _kernel_layout(
            self.codes, self.codes.numel() * 8 // self.bits, self.bits, self.channels, self.grouping
        )
        if layout is not None:
            stored = self._qparams(slice(None))
            levels = None if self.levels is None else level_table(self.levels, self.codes.device)
            x = layout.decode(self.codes, stored.rule, stored.scale, stored.other, levels, self.dtype)
            return x.view(*self.codes.shape[:2], -1, self.channels)[:, :, : self.tokens]
        codes = unpack(self.codes, self.bits)
        if self.grouping.axis == "channel":
            pieces = [codes.unflatten(-1, (self.channels, -1))]
        else:
            pieces = self.grouping.split(codes)
        decoded, start = [], 0
        for piece in pieces:
            part = slice(start, start + piece.shape[-2])
            decoded.append(self._qparams(part).decode(piece))
            start = part.stop
        x = self.grouping.merge(decoded)[:, :, : self.tokens]
        limit = torch.finfo(self.dtype).max
        return x.clamp_(-limit, limit).to(self.dtype)

    def _qparams(self, part: slice) -> QParams:
        def cut(x):
            return x[..., part] if isinstance(x, Tensor) else x

        return QParams(cut(self.scale), cut(self.offset), cut(self.zero), self.levels)


def _kernel_layout(x: Tensor, numbers: int, bits: int, channels: int, grouping: Grouping) -> Any:
    """What encodes and decodes such groups in one pass on the device of x; None where the torch code does."""
    if not kernels.available(x.device, numbers):
        return None
    from kvdelta.schemes.kernels.affine import Layout

    lengths = grouping.group_lengths(channels)
    layout = Layout(bits, lengths[0], channels if grouping.axis == "channel" else 1)
    return layout if len(lengths) == 1 and layout.works else None


@dataclass(frozen=True)
class AffineQuantizer(Quantizer):
    """An integer scheme: a subclass only chooses scale and offset of each group."""

    bits: int
    group_size: GroupSize = 64
    axis: Axis = "token"

    @property
    def bounded(self) -> bool | str:
        return True

    def __post_init__(self) -> None:
        for length in {self.grouping.tokens_per_group, self.group_size} - {1, "all"}:
            check_packable(self.bits, int(length))

    @abstractmethod
    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        """Parameters, rounded as they are stored, of float32 groups on the last axis."""

    @property
    def kernel(self) -> tuple[str, tuple]:
        """How a fused kernel chooses the parameters that `choose_qparams` would, with which settings; "given": it does
        not, and has them from there."""
        return "given", ()

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def step_of_range(self) -> float:
        """1 / max_code. To multiply by: CUDA divides by a number so, and codes must not depend on the device."""
        return 1.0 / self.max_code

    @property
    def grouping(self) -> Grouping:
        return Grouping(self.axis, self.group_size)

    @property
    def tokens_per_group(self) -> int:
        return self.grouping.tokens_per_group

    def check(self, channels: int) -> None:
        for length in self.grouping.group_lengths(channels):
            check_packable(self.bits, length)

    def quantize(self, x: KV) -> AffineTensor:
        layout = _kernel_layout(x, x.numel(), self.bits, x.shape[3], self.grouping)
        codes, qparams = self._encode(x) if layout is None else self._encode_fused(x, layout)
        return AffineTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            codes=codes,
            scale=qparams.scale,
            offset=qparams.offset,
            zero=qparams.zero,
            levels=qparams.levels,
            bits=self.bits,
            channels=x.shape[3],
            grouping=self.grouping,
        )

    def _encode(self, x: KV) -> tuple[Tensor, QParams]:
        chosen: list[QParams] = []
        codes: list[Tensor] = []
        for groups in self.grouping.split(x):
            groups = groups.float()
            qparams = self.choose_qparams(groups)
            chosen.append(qparams)
            codes.append(qparams.encode(groups, self.max_code).flatten(-2))
        qparams = chosen[0] if len(chosen) == 1 else _joined(chosen)
        return pack(codes[0] if len(codes) == 1 else torch.cat(codes, dim=-1), self.bits), qparams

    def _encode_fused(self, x: KV, layout: Any) -> tuple[Tensor, QParams]:
        groups = self.grouping.split(x)[0]
        choice, settings = self.kernel
        if choice == "given":
            qparams = self.choose_qparams(groups.float())
            bounds = None if qparams.levels is None else level_bounds(qparams.levels, x.device)
            codes = layout.encode(x, self.max_code, qparams.rule, qparams.scale, qparams.other, bounds)
        else:
            codes, scale, other = layout.choose_and_encode(x, self.max_code, choice, *settings)
            scale, other = (one.view(groups.shape[:-1]) if isinstance(one, Tensor) else one for one in (scale, other))
            qparams = QParams(scale, offset=other) if choice == "min-max" else QParams(scale, zero=other)
        return codes.view(*groups.shape[:3], -1), qparams


def _joined(chosen: list[QParams]) -> QParams:
    def cat(name: str):
        first = getattr(chosen[0], name)
        return torch.cat([getattr(q, name) for q in chosen], dim=-1) if isinstance(first, Tensor) else first

    return replace(chosen[0], scale=cat("scale"), offset=cat("offset"), zero=cat("zero"))


@dataclass(frozen=True)
class MinMaxQuantizer(AffineQuantizer):
    """Asymmetric, float zero: scale = (max − min)/(2^b − 1), offset = min (KIVI, Liu et al. 2024, arXiv
    2402.02750; also optimum-quanto). A constant group has scale 1 and code 0: exact to its offset's rounding,
    where the published KIVI code divides 0 by 0."""

    @property
    def kernel(self) -> tuple[str, tuple]:
        return "min-max", ()

    def choose_qparams(self, groups: Float[Tensor, "*lead group"]) -> QParams:
        low, high = torch.aminmax(groups, dim=-1)
        spread = high - low
        scale = torch.where(spread == 0, 1.0, spread * self.step_of_range)
        return QParams(stored_scale(scale), offset=stored_offset(low))
