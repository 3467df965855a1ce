"""What is not quantized, through the same storage path."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvdelta.schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactTensor(QuantizedTensor):
    exact: Tensor

    @property
    def code_parts(self) -> tuple[str, ...]:
        return ("exact",)

    def dequantize(self) -> KV:
        return self.exact

    def counted_bytes(self) -> float:
        return 2 * self.exact.numel()  # exact numbers count 16 bits, whatever the run's dtype


@dataclass(frozen=True)
class ExactQuantizer(Quantizer):
    lossless: ClassVar[bool] = True

    def quantize(self, x: KV) -> ExactTensor:
        return ExactTensor(tokens=x.shape[2], tokens_per_group=1, dtype=x.dtype, exact=x.clone())


def exactly() -> tuple[TensorScheme, TensorScheme]:
    """Keys and values as they are."""
    return TensorScheme(ExactQuantizer()), TensorScheme(ExactQuantizer())
