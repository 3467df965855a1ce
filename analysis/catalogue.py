"""Every scheme with its fields, defaults, source and bits, from the registry alone."""

import json

import torch

from analysis import tables
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


def listing(format: str) -> str:
    """All of it as table (for people), md, json or csv."""
    header, body = catalogue()
    if format == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in body], indent=1, ensure_ascii=False)
    if format == "csv":
        return tables.csv_text(header, body).rstrip("\n")
    if format == "md":
        return tables.as_markdown(header, body).rstrip("\n")
    entries = [
        "\n".join([name, *(f"    {what}: {text}" for what, text in zip(header[1:], rest, strict=True))])
        for name, *rest in body
    ]
    return "\n".join([*entries, SPECS])


SPECS = """
A spec is name:field=value,field=value, such as kivi:bits=2,group_size=64. A field without its key_ or value_ (bits, axis)
sets both sides; a short name with fields, such as int4:group_size=32, changes its settings."""
