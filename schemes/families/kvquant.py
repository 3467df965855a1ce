"""KVQuant: keys before RoPE, per channel with calibrated thresholds; values per token; uneven levels, sparse outliers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from schemes.affine import FLOAT16_TINY, QParams, level_table, nearest, stored_offset, stored_scale
from schemes.base import KV, Place, QuantizedTensor, Quantizer, Rotary, TensorScheme
from schemes.calibration_file import CalibrationFile, read
from schemes.errors import UserError
from schemes.family import Family
from schemes.levels import quantile, weighted_levels
from schemes.packing import check_packable, pack, unpack
from schemes.ragged import Ragged
from schemes.wrapping import in_range

Bits = Literal[2, 3, 4]
Levels = tuple[float, ...]


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
class CalibratedQuantizer(Quantizer):
    """What keys and values share: a width and the file that `kvdelta calibrate` made."""

    bits: int
    outliers: float
    file: CalibrationFile | None

    needs_place: ClassVar[bool] = True

    @property
    def calibrated_on(self) -> Mapping[str, Any] | None:
        return read(self.file).facts["text"] if self.file else None

    def check(self, channels: int) -> None:
        check_packable(self.bits, channels)

    def _table(self, name: str, place: Place) -> Tensor:
        """Of the calibration: the table `name` of the layer and side of `place`."""
        if not self.file:
            raise UserError(_UNCALIBRATED)
        calibration = read(self.file)
        for what in ("bits", "outliers"):
            if calibration.facts.get(what) != getattr(self, what):
                raise UserError(
                    f"the calibration {self.file} was made with {what}={calibration.facts.get(what)}, not {getattr(self, what)}"
                )
        left_out = calibration.facts.get("sink_tokens") or 0
        if left_out < place.sink_tokens:  # leaving out more is no harm: what is quantized was not fitted to a sink
            raise UserError(
                f"the calibration {self.file} leaves out {left_out} first token{'s' * (left_out != 1)} of each window, and "
                f"the scheme keeps {place.sink_tokens} exact: its levels are fitted to what is never quantized; make one "
                "with kvdelta calibrate and this scheme"
            )
        full_name = f"{place.layer}.{place.side}.{name}"
        if full_name not in calibration.tensors:
            raise UserError(f"the calibration {self.file} has no {full_name}: it was made for another model")
        return calibration.tensors[full_name]


_UNCALIBRATED = (
    "kvquant needs a calibration: make one with kvdelta calibrate --scheme kvquant:bits=3 --text TRAIN --out FILE, then "
    "give kvquant:bits=3,calibration=FILE"
)
_UNBOUND = "kvquant works with a model's layers: use it through a SchemeCache, or bind the scheme first"


@dataclass(frozen=True)
class KeyQuantizer(CalibratedQuantizer):
    """Per-channel keys before rotation, of no layer yet."""

    def quantize(self, x: KV) -> KeyTensor:
        raise UserError(_UNBOUND)

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


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueTensor(QuantizedTensor):
    """scale (half range) and offset (middle) float16 [batch, 1, tokens, 1]; outliers [batch, 1, tokens, count]."""

    codes: UInt8[Tensor, "batch heads tokens bytes"]
    scale: Tensor
    offset: Tensor
    outlier_value: Tensor
    outlier_index: Tensor
    bits: int
    levels: Levels

    def dequantize(self) -> KV:
        qparams = QParams(self.scale[..., 0], self.offset[..., 0], levels=self.levels)
        x = qparams.decode(unpack(self.codes, self.bits))
        heads = x.shape[1]
        rows = x.transpose(1, 2).flatten(2)  # batch, tokens, heads × channels
        rows = rows.scatter(-1, self.outlier_index[:, 0].long() & 65535, self.outlier_value[:, 0].float())
        return in_range(rows.unflatten(-1, (heads, -1)).transpose(1, 2)[:, :, : self.tokens], self.dtype)


@dataclass(frozen=True)
class ValueQuantizer(CalibratedQuantizer):
    """Per token over all heads: the numbers beyond the outer quantiles are kept, the rest is normalised to [−1, 1]."""

    layer: int = -1
    levels: Levels = field(default=(), repr=False)

    @property
    def independent(self) -> bool | str:
        return "one range a token over all KV heads"

    @property
    def bounded(self) -> bool | str:
        return "levels are not evenly spaced"

    def bind(self, place: Place) -> "ValueQuantizer":
        levels = tuple(self._table("levels", place).tolist())
        return replace(self, layer=place.layer, levels=levels)

    def quantize(self, x: KV) -> ValueTensor:
        if not self.levels:
            raise UserError(_UNBOUND)
        rows = x.float().transpose(1, 2).flatten(2)
        inliers, values, places = without_outliers(rows, self.outliers)
        low, high = torch.aminmax(inliers, dim=-1)
        spread = high - low
        scale = (stored_scale(spread / 2) * (spread > 0))[:, None, :, None]  # 0: a constant is its offset
        offset = stored_offset((high + low) / 2)[:, None, :, None]
        even = (inliers.unflatten(-1, (x.shape[1], -1)).transpose(1, 2) - offset.float()) / scale.float().clamp(
            min=FLOAT16_TINY
        )
        return ValueTensor(
            tokens=x.shape[2],
            tokens_per_group=1,
            dtype=x.dtype,
            codes=pack(nearest(even, self.levels), self.bits),
            scale=scale,
            offset=offset,
            outlier_value=stored_offset(values)[:, None],
            outlier_index=places.to(torch.int16)[:, None],
            bits=self.bits,
            levels=self.levels,
        )


def without_outliers(
    rows: Float[Tensor, "batch tokens numbers"], fraction: float
) -> tuple[Float[Tensor, "batch tokens numbers"], Float[Tensor, "batch tokens kept"], Int[Tensor, "batch tokens kept"]]:
    """The numbers of each token with those beyond the outer quantiles, `fraction` in all, replaced by the median;
    their values and places."""
    each_side = ceil(fraction / 2 * (rows.shape[-1] - 1))
    high, low = rows.topk(each_side, dim=-1), rows.topk(each_side, dim=-1, largest=False)
    places = torch.cat([low.indices, high.indices], dim=-1)
    median = rows.median(dim=-1, keepdim=True).values
    return rows.scatter(-1, places, median.expand_as(places)), torch.cat([low.values, high.values], dim=-1), places


def kvquant(
    *, bits: Bits = 3, outliers: float = 0.01, first_exact: int = 1, calibration: CalibrationFile | Literal[""] = ""
) -> tuple[TensorScheme, TensorScheme]:
    """first_exact: first tokens that stay exact; `kvdelta calibrate` leaves them out. calibration: its file."""
    if not 0 < outliers < 0.5:
        raise UserError(f"outliers={outliers}: the share of numbers kept exactly is between 0 and 0.5")
    if first_exact < 0:
        raise UserError(f"first_exact={first_exact}: a number of tokens is not negative")
    return (
        TensorScheme(KeyQuantizer(bits, outliers, calibration or None), sink_tokens=first_exact),
        TensorScheme(ValueQuantizer(bits, outliers, calibration or None), sink_tokens=first_exact),
    )


def calibrate(
    layer: int, samples: Mapping[str, Tensor], weights: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tables of one layer. samples: "key" (before rotation) and "value", float32 [heads, tokens, channels], without
    the tokens that stay exact; weights: the same shape, how much an error counts there; fields: of the spec.

    Levels are fitted to what is stored as codes: outliers, which are kept beside them, do not count.
    """
    bits, outliers = fields["bits"], fields["outliers"]
    keys = samples["key"]
    lower, upper = (quantile(keys, q) for q in (outliers / 2, 1 - outliers / 2))
    even = (keys - (upper + lower)[:, None] / 2) / ((upper - lower)[:, None] / 2).clamp(min=2.0**-24)
    inside = even.abs() <= 1
    values, value_weights = (x["value"].transpose(0, 1).flatten(1) for x in (samples, weights))
    inliers, _, places = without_outliers(values[None], outliers)
    low, high = torch.aminmax(inliers[0], dim=-1, keepdim=True)
    even_values = (values - (high + low) / 2) / ((high - low) / 2).clamp(min=2.0**-24)
    coded = torch.ones_like(values, dtype=torch.bool).scatter(-1, places[0], False)
    return {
        f"{layer}.key.lower": lower,
        f"{layer}.key.upper": upper,
        f"{layer}.key.levels": weighted_levels(even[inside], weights["key"][inside], 2**bits),
        f"{layer}.value.levels": weighted_levels(even_values[coded], value_weights[coded], 2**bits),
    }


FAMILY = Family(
    kvquant,
    "calibrated: keys before RoPE per channel, values per token, uneven levels, 1 % outliers exact",
    "Hooper et al. 2024 (KVQuant), arXiv 2401.18079",
    formula="(x − middle)/half range to [−1, 1], nearest of 2^b levels of a weighted k-means (one set a layer and side); K before "
    "RoPE with the thresholds of a calibration text, V by the range of its token over all heads; outliers exact as value + "
    "index. Calibrated on the tokens that are quantized: the first first_exact of a window are left out. Bits: K b + .32 + "
    "32/(H·D), V the same + 32/(H·D) for its middle and half range.",
    good="2 to 4 bits: channels of keys keep their place before RoPE, and one set of thresholds needs no scale per group.",
    fails="text unlike the calibration's; small models with few heads, where counts and ranges cost more bits. The keys are "
    "rotated again at every read.",
    calibrate=calibrate,
)
