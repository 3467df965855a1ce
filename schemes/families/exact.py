"""Identity through the same storage path: the baseline of every comparison."""

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.family import Family
from kvdelta.schemes.lossless import exactly


def exact() -> tuple[TensorScheme, TensorScheme]:
    return exactly()


FAMILY = Family(
    exact,
    "not quantized; the baseline",
    "the model's own cache, as transformers' DynamicCache keeps it",
    formula="x̂ = x, through the same storage path.",
    good="telling what the others cost.",
    fails="memory: 16 bits a number.",
    compared="with transformers' DynamicCache, in the controls of each run: equal bits.",
)
