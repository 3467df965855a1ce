"""KIVI's residual rule: a window of exact recent tokens."""

from kvdelta.schemes.base import Quantizer, TensorScheme
from kvdelta.schemes.errors import UserError


def windowed(
    key: Quantizer, value: Quantizer, residual_length: int, sink_tokens: int = 0
) -> tuple[TensorScheme, TensorScheme]:
    """Keys: when `residual_length` tokens are exact, all of them are quantized. Values: beyond `residual_length` exact
    tokens the oldest is quantized. The first `sink_tokens` stay exact. UserError for a window without tokens."""
    if residual_length < 1:
        raise UserError(f"residual_length={residual_length}: the exact window has at least one group of tokens")
    return (
        TensorScheme(key, flush_every=residual_length, sink_tokens=sink_tokens),
        TensorScheme(value, keep_recent=residual_length, sink_tokens=sink_tokens),
    )
