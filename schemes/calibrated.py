"""What calibrated quantizers of keys and of values share: the tables that `kvdelta calibrate` wrote for a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kvdelta.schemes.base import Place, Quantizer
from kvdelta.schemes.calibration_file import CalibrationFile, read
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.packing import check_packable

Levels = tuple[float, ...]

_UNCALIBRATED = (
    "kvquant needs a calibration: make one with kvdelta calibrate --scheme kvquant:bits=3 --text TRAIN --out FILE, then "
    "give kvquant:bits=3,calibration=FILE"
)
UNBOUND = "kvquant works with a model's layers: use it through a SchemeCache, or bind the scheme first"


@dataclass(frozen=True)
class CalibratedQuantizer(Quantizer):
    """What keys and values share: a width and the file that `kvdelta calibrate` made."""

    bits: int
    outliers: float
    file: CalibrationFile | None

    needs_place: ClassVar[bool] = True

    @property
    def calibrated_for(self) -> Mapping[str, Any] | None:
        return read(self.file).facts.get("model") if self.file else None

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
