"""Identity through the same storage path: the baseline of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from schemes.base import KV, QuantizedTensor, Quantizer, TensorScheme
from schemes.family import Family


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


def exact() -> tuple[TensorScheme, TensorScheme]:
    return TensorScheme(ExactQuantizer()), TensorScheme(ExactQuantizer())


FAMILY = Family(
    exact,
    "not quantized; the baseline",
    "the model's own cache, as transformers' DynamicCache keeps it",
    formula="x̂ = x, through the same storage path.",
    good="telling what the others cost.",
    fails="memory: 16 bits a number.",
)
