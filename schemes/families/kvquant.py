"""KVQuant: keys before RoPE, per channel with calibrated thresholds; values per token; uneven levels, sparse outliers."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.calibrated_keys import KeyQuantizer
from kvdelta.schemes.calibrated_values import ValueQuantizer, without_outliers
from kvdelta.schemes.calibration_file import CalibrationFile
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.levels import quantile, weighted_levels

Bits = Literal[2, 3, 4]


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
    compared="with the published simulated quantizer (SqueezeAILab/KVQuant, 57a2383), run on real keys, before RoPE, and values, with its "
    "thresholds and levels: the same outliers, codes but for those near a boundary, errors to 1 %. Departs: thresholds, middle and half "
    "range of keys are float16 there, middle and half range of values here. In what is calibrated: thresholds are the nearest rank here, "
    "interpolated there; the exact first tokens are left out of thresholds and levels here, there of levels alone (and none is exact by "
    "default); k-means goes by a histogram here, by scikit-learn's there, and leaves the same squared error to 2 %; levels of values are "
    "fitted to what is coded here, there in units of a token's quantiles, whose error is up to 5 % larger. Weights are squared gradients in both, which "
    "were not compared. Missing: Q-Norm, for 2 bits, which that commit's calibration cannot run either; and the option of a cap on the outliers "
    "of a token's keys.",
    calibrate=calibrate,
)
