"""Values per token over all heads, with calibrated levels; the ends of each token are kept exactly."""

from dataclasses import dataclass, field, replace
from math import ceil

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kvdelta.schemes.affine import FLOAT16_TINY, QParams, nearest, stored_offset, stored_scale
from kvdelta.schemes.base import KV, Place, QuantizedTensor
from kvdelta.schemes.calibrated import UNBOUND, CalibratedQuantizer, Levels
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.packing import pack, unpack
from kvdelta.schemes.wrapping import in_range


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
            raise UserError(UNBOUND)
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
