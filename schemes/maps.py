"""Schemes that differ by layer or side: files that map layers to schemes, and one side alone.

A file is JSON: {"default": S, "layers": {"0": S, "4-7": S}}, where S is a spec or {"key": spec, "value": spec}. One that
was fitted to texts names them: "fitted_on": [{"name": …, "sha256": …, "token_sha256": …}], with whatever else is to be
known of each.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemes.base import Scheme
from schemes.errors import UserError
from schemes.lossless import exactly

Parse = Callable[[str], Scheme]

KEYS = {"default", "layers", "fitted_on"}
TEXT_FIELDS = ("name", "sha256", "token_sha256")


def read(spec: str, parse: Parse) -> Scheme:
    """The scheme of "@FILE". Its canonical name is "@FILE#HASH"; a hash that is given must be the content's.

    ValueError for a file that is not there or says something else; the messages name the place.
    """
    path, _, expected = spec.removeprefix("@").partition("#")
    try:
        data = Path(path).read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise UserError(f"scheme {spec!r}: the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"scheme {spec!r} is not JSON: {error}") from None
    found = hashlib.sha256(data).hexdigest()[:8]
    if expected and expected != found:
        raise UserError(f"scheme {spec!r}: the file has changed since, its hash is now {found}")
    if not isinstance(content, dict) or "default" not in content or set(content) - KEYS:
        raise UserError(
            f'scheme {spec!r}: a map of layers has "default" and "layers", and "fitted_on" where it was fitted to a text; '
            "nothing else"
        )
    fitted_on = _texts(content.get("fitted_on", []), spec)
    default = _scheme(content["default"], parse, f"scheme {spec!r}, default")
    layers: dict[int, Scheme] = {}
    for span, entry in content.get("layers", {}).items():
        scheme = _scheme(entry, parse, f"scheme {spec!r}, layers {span}")
        first, dash, last = span.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"scheme {spec!r}: {span!r} is no layer; give a number such as 4, or a range such as 4-7")
        for index in range(int(first), int(last if dash else first) + 1):
            if index in layers:
                raise UserError(f"scheme {spec!r}: layer {index} is named twice")
            layers[index] = scheme
    return Scheme(
        f"@{path}#{found}",
        default.key,
        default.value,
        tuple(sorted(layers.items(), key=lambda item: item[0])),
        (*fitted_on, *default.fitted_on),
    )


def _texts(given: Any, spec: str) -> tuple[dict[str, Any], ...]:
    """What "fitted_on" says."""
    good = isinstance(given, list) and all(
        isinstance(text, dict) and all(isinstance(text.get(name), str) for name in TEXT_FIELDS) for text in given
    )
    if not good:
        raise UserError(f'scheme {spec!r}: "fitted_on" is a list of texts, each with {", ".join(TEXT_FIELDS)}')
    return tuple(given)


def _scheme(entry: Any, parse: Parse, where: str) -> Scheme:
    if isinstance(entry, str):
        entry = {"key": entry, "value": entry}
    if not isinstance(entry, dict) or set(entry) != {"key", "value"}:
        raise UserError(f'{where}: give a spec, or {{"key": spec, "value": spec}}')
    try:
        sides = {side: parse(spec) for side, spec in entry.items()}
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return joined(sides["key"], sides["value"])


def joined(key: Scheme, value: Scheme) -> Scheme:
    """The keys of one scheme and the values of another."""
    name = key.name if key == value else f"keys {key.name}, values {value.name}"
    return Scheme(
        name, key.key, value.value, fitted_on=key.fitted_on if key == value else key.fitted_on + value.fitted_on
    )


def one_side(scheme: Scheme, side: str) -> Scheme:
    """The scheme with only its keys, or only its values, quantized; side "both" is the scheme itself.

    Its name is for people: no spec gives it.
    """
    if side == "both":
        return scheme
    other = "value" if side == "key" else "key"
    unquantized = dict(zip(("key", "value"), exactly(), strict=True))
    layers = tuple((index, one_side(variant, side)) for index, variant in scheme.layers)
    return replace(scheme, name=f"{scheme.name} ({side}s only)", layers=layers, **{other: unquantized[other]})
