"""Specs of what is no scheme: caches that evict, and transformers' own quantized caches. Light: imports no transformers.

They are written as schemes are: "sink-window:sinks=4,bits=4", "hf-hqq:bits=4,axis=0".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvdelta.schemes import SCHEMES, engines, parse_scheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.fields import Field, read_items, shown, unknown
from kvdelta.schemes.registry import SHORT_NAMES
from kvdelta.schemes.spec import check_text, split_spec

_SIZE = {"tokens": Field("tokens", int, None), "bits": Field("bits", float, None)}
_HF_LENGTHS = {
    "group_size": Field("group_size", int, 64),
    "residual_length": Field("residual_length", int, 128),
}


def _axes(kind: Any) -> dict[str, Field]:
    return {name: Field(name, kind, 0) for name in ("key_axis", "value_axis")}


KINDS: dict[str, dict[str, Field]] = {
    "sliding-window": _SIZE,
    "sink-window": {"sinks": Field("sinks", int, 4), **_SIZE},
    "hf-hqq": {"bits": Field("bits", Literal[1, 2, 3, 4, 8], 4), **_axes(Literal[0, 1]), **_HF_LENGTHS},
    "hf-quanto": {"bits": Field("bits", Literal[2, 4], 4), **_axes(Literal[0, -1]), **_HF_LENGTHS},
    "hf-fp8": {},
}
"""Fields of each, with their defaults; those of hf-* are transformers' own. sinks: as Xiao et al. 2023 have them."""

SHORT = {f"hf-{backend}{bits}": (f"hf-{backend}", bits) for backend in ("hqq", "quanto") for bits in (2, 4, 8)}
del SHORT["hf-quanto8"]

ALIASES = {"nbits": ("bits",), "axis": ("key_axis", "value_axis")}


@dataclass(frozen=True)
class CacheSpec:
    """A spec that names no scheme. name: the canonical spec; values: of every field of its kind."""

    kind: str
    values: Mapping[str, Any]
    name: str


def parse_cache_spec(spec: str) -> CacheSpec | None:
    """What a spec says, where it names no scheme; None where the schemes' own parser has to say.

    Raises UserError for a name that nothing has (with the nearest match over all), for an unknown field or value,
    and for values that do not go together.
    """
    spec = spec.strip()
    check_text(spec)
    if spec.startswith("@"):
        return None
    try:
        parts = split_spec(spec)
    except UserError:
        return None  # the schemes' parser says what is wrong
    kind, bits = SHORT.get(parts.name, (parts.name, None))
    try:
        if kind not in KINDS:
            if not (parts.name in SCHEMES or parts.name in SHORT_NAMES or engines.find(parts.name)):
                raise UserError(unknown("scheme", parts.name, [*SCHEMES, *SHORT_NAMES, *KINDS, *SHORT]))
            return None
        if parts.inner is not None:
            raise UserError(f"{parts.name} wraps no scheme; its fields come as {parts.name}:field=value")
        aliases = ALIASES if kind.startswith("hf-") and KINDS[kind] else {}
        given = read_items(parts.items, KINDS[kind], aliases, kind)
        if bits is not None:
            given.setdefault("bits", bits)
        values = {name: given.get(name, field.default) for name, field in KINDS[kind].items()}
        _check(kind, values)
    except UserError as error:
        raise UserError(f"scheme {spec!r}: {error}") from None
    return CacheSpec(kind, values, _canonical(kind, values))


def canonical(spec: str) -> str:
    """The canonical name of any spec, a scheme's or not; UserError for what is none."""
    cache = parse_cache_spec(spec)
    return cache.name if cache else parse_scheme(spec).name


def _check(kind: str, values: dict[str, Any]) -> None:
    for name in ("group_size", "residual_length"):
        if values.get(name, 1) < 1:
            raise UserError(f"{name}={values[name]}: give 1 or more")
    if kind not in ("sliding-window", "sink-window"):
        return
    sinks, tokens, bits = values.get("sinks", 0), values["tokens"], values["bits"]
    if (tokens is None) == (bits is None):
        raise UserError(f"give exactly one of tokens and bits, as {kind}:tokens=384 or {kind}:bits=4")
    if sinks < 0:
        raise UserError(f"sinks={sinks}: a number of tokens is not negative")
    if tokens is not None and tokens <= sinks:
        raise UserError(
            f"tokens={tokens} with {sinks} sinks keeps no newest token; tokens counts all that are kept: give {sinks + 1} "
            "or more"
        )
    if bits is not None and not (math.isfinite(bits) and 0 < bits < 16):
        raise UserError(f"bits={bits:g}: exact tokens count 16 bits each, so give more than 0 and less than 16")


def _canonical(kind: str, values: dict[str, Any]) -> str:
    """bits always, other fields where they differ from their default, equal axes as one."""
    shortest = dict(values)
    if "key_axis" in values and values["key_axis"] == values["value_axis"]:
        shortest = {("axis" if name == "key_axis" else name): values[name] for name in values if name != "value_axis"}
    fields = {**KINDS[kind], "axis": Field("axis", int, 0)}
    parts = [
        f"{name}={f'{value:g}' if isinstance(value, float) else shown(value)}"
        for name, value in shortest.items()
        if value is not None and (name == "bits" or value != fields[name].default)
    ]
    return kind + (":" + ",".join(parts) if parts else "")
