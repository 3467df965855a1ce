"""Quantization schemes for the KV cache: tensors in, tensors out."""

from schemes.base import KV, Place, QuantizedTensor, Quantizer, Rotary, Scheme, TensorScheme
from schemes.registry import SCHEMES, parse_scheme
from schemes.store import TokenStore

__all__ = [
    "KV",
    "SCHEMES",
    "Place",
    "QuantizedTensor",
    "Quantizer",
    "Rotary",
    "Scheme",
    "TensorScheme",
    "TokenStore",
    "parse_scheme",
]
