"""Every scheme with its fields, defaults, source and bits, from the registry alone."""

import torch

from schemes import SCHEMES, TokenStore, parse_scheme
from schemes.registry import fields_of

TOKENS, CHANNELS = 4096, 64  # what the bits are measured on; the exact tail of a residual window counts


def catalogue() -> tuple[list[str], list[list[str]]]:
    """Header and rows; bits of keys and values measured over 4096 tokens of 64 channels."""
    header = ["scheme", "what", "fields", "short names", "bits K / V", "source"]
    body = []
    for name, family in SCHEMES.items():
        fields = ", ".join(f"{field.name}={field.default}" for field in fields_of(family).values())
        body.append([name, family.summary, fields, ", ".join(family.short) or "–", _bits(name), family.source])
    return header, body


def _bits(spec: str) -> str:
    x = torch.randn(1, 1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0))
    measured = []
    for side in parse_scheme(spec).sides.values():
        store = TokenStore(side)
        store.append(x)
        measured.append(f"{8 * store.counted_bytes() / store.elements:.2f}")
    return " / ".join(measured)
