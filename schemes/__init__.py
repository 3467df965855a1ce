"""Quantization schemes for the KV cache: tensors in, tensors out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvdelta.schemes.base import KV, Place, QuantizedTensor, Quantizer, Rotary, TensorScheme
    from kvdelta.schemes.errors import UserError
    from kvdelta.schemes.registry import SCHEMES, parse_scheme
    from kvdelta.schemes.scheme import LayerKinds, Scheme
    from kvdelta.schemes.store import TokenStore

__all__ = [
    "KV",
    "SCHEMES",
    "LayerKinds",
    "Place",
    "QuantizedTensor",
    "Quantizer",
    "Rotary",
    "Scheme",
    "TensorScheme",
    "TokenStore",
    "UserError",
    "parse_scheme",
]

_HOMES = {
    **dict.fromkeys(("KV", "Place", "QuantizedTensor", "Quantizer", "Rotary", "TensorScheme"), "base"),
    **dict.fromkeys(("SCHEMES", "parse_scheme"), "registry"),
    **dict.fromkeys(("LayerKinds", "Scheme"), "scheme"),
    "TokenStore": "store",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: torch takes seconds to import, and what reads records needs none of it
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'kvdelta.schemes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvdelta.schemes.{_HOMES[name]}"), name)
