"""Keys as they were before RoPE, per channel with calibrated thresholds and levels; what is beyond them is kept exactly."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kvdelta.schemes.affine import level_table, nearest
from kvdelta.schemes.base import KV, Place, QuantizedTensor, Rotary
from kvdelta.schemes.calibrated import UNBOUND, CalibratedQuantizer, Levels
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.packing import pack, unpack
from kvdelta.schemes.ragged import Ragged
from kvdelta.schemes.wrapping import in_range


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyTensor(QuantizedTensor):
    """Keys before rotation. counts: outliers a token and batch row, int32; outliers: the values and places. The
    channels' middle and half range [heads, channels] and the levels belong to the calibration and are not counted."""

    codes: UInt8[Tensor, "batch heads tokens bytes"]
    counts: Int[Tensor, "batch 1 tokens 1"]
    outliers: Ragged
    bits: int
    start: int
    quantizer: "BoundKeys"

    def dequantize(self) -> KV:
        used = slice(0, self.tokens)
        codes = unpack(self.codes[:, :, used], self.bits)
        middle, half = self.quantizer.middle_and_half(codes.device)
        keys = level_table(self.quantizer.levels, codes.device)[codes.int()] * half + middle
        self.outliers.put(keys, self.counts[:, :, used])
        return in_range(self.quantizer.rotary.rotate(keys, self.start), self.dtype)

    @property
    def _kept(self) -> int:
        """Outliers of the valid tokens: there may be more after a crop in place."""
        return int(self.counts[:, :, : self.tokens].sum())

    def parts(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "counts": self.counts}

    def nbytes(self) -> dict[str, int]:
        held = {"outlier_value": self.outliers.value, "outlier_index": self.outliers.index}
        return super().nbytes() | {name: part.numel() * part.element_size() for name, part in held.items()}

    def crop(self, tokens: int) -> Self:
        cropped = super().crop(tokens)
        return replace(cropped, outliers=self.outliers.first(cropped._kept))

    def without_first(self, groups: int) -> Self:
        gone = int(self.counts[:, :, :groups].sum())
        start = self.start + groups * self.tokens_per_group
        return replace(super().without_first(groups), outliers=self.outliers.after(gone), start=start)

    def extended(self, new: QuantizedTensor, room: Callable[[int], int]) -> Self:
        assert isinstance(new, KeyTensor)
        outliers = self.outliers.first(self._kept).followed_by(new.outliers)
        return replace(super().extended(new, room), outliers=outliers)

    def index_select(self, rows: Int[Tensor, "rows"]) -> Self:
        here = rows.to(self.codes.device)
        return replace(super().index_select(rows), outliers=self.outliers.rows(here, self.counts[:, :, : self.tokens]))

    def repeat(self, repeats: int) -> Self:
        rows = torch.arange(self.codes.shape[0], device=self.codes.device).repeat_interleave(repeats)
        return self.index_select(rows)

    def to(self, device: torch.device | str) -> Self:
        return replace(super().to(device), outliers=self.outliers.to(device))


@dataclass(frozen=True)
class KeyQuantizer(CalibratedQuantizer):
    """Per-channel keys before rotation, of no layer yet."""

    def quantize(self, x: KV) -> KeyTensor:
        raise UserError(UNBOUND)

    def bind(self, place: Place) -> "BoundKeys":
        if place.rotary is None:
            raise UserError(
                "kvquant stores keys as they were before RoPE and needs the model's rotary module: use "
                "SchemeCache.for_model(scheme, model)"
            )
        lower, upper = self._table("lower", place), self._table("upper", place)
        levels = tuple(self._table("levels", place).tolist())
        return BoundKeys(self.bits, self.outliers, self.file, place.layer, levels, lower, upper, place.rotary)


@lru_cache(maxsize=1024)
def _middle_and_half(lower: Tensor, upper: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a layer's thresholds (the same tensors: they are told apart by identity), brought to the device once."""
    lower, upper = lower.to(device)[:, None], upper.to(device)[:, None]
    return (upper + lower) / 2, ((upper - lower) / 2).clamp(min=2.0**-24)


@dataclass(frozen=True)
class BoundKeys(CalibratedQuantizer):
    """Of one layer: thresholds [heads, channels], levels, and the layer's rotary embedding."""

    layer: int
    levels: Levels = field(repr=False)
    lower: Float[Tensor, "heads channels"] = field(compare=False, repr=False)
    upper: Float[Tensor, "heads channels"] = field(compare=False, repr=False)
    rotary: Rotary = field(compare=False, repr=False)

    needs_place: ClassVar[bool] = True

    @property
    def independent(self) -> bool | str:
        return "thresholds are those of a head"

    @property
    def appends(self) -> bool | str:
        return "the rotation is that of a position: `quantize_at` is told it"

    @property
    def constants(self) -> bool | str:
        return "the levels come from a calibration text"

    def middle_and_half(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _middle_and_half(self.lower, self.upper, device)

    def quantize(self, x: KV) -> KeyTensor:
        return self.quantize_at(x, 0)

    def quantize_at(self, x: KV, start: int) -> KeyTensor:
        keys = self.rotary.unrotate(x.float(), start)
        if keys.shape[1:4:2] != self.lower.shape:
            raise UserError(
                f"the calibration {self.file} is for {tuple(self.lower.shape)} heads and channels, not "
                f"{tuple(keys.shape[1:4:2])}: it was made for another model"
            )
        middle, half = self.middle_and_half(x.device)
        even = (keys - middle) / half
        outliers, counts = Ragged.of(keys, even.abs() > 1)
        return KeyTensor(
            tokens=x.shape[2],
            tokens_per_group=1,
            dtype=x.dtype,
            codes=pack(nearest(even, self.levels), self.bits),
            counts=counts,
            outliers=outliers,
            bits=self.bits,
            start=start,
            quantizer=self,
        )
