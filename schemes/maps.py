"""Schemes that differ by layer or side: files that map layers to schemes, and one side alone.

A file is JSON: {"default": S, "layers": {"0": S, "4-7": S}}, where S is a spec or {"key": spec, "value": spec}. A spec may
have rules for layers of its own (exact_first_layers, another map): they go on in the layers that S is for, and those of
"layers" come before those of "default". A map that was fitted to texts names them: "fitted_on": [{"name": …, "sha256": …,
"token_sha256": …}], with whatever else is to be known of each.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvdelta.schemes.errors import UserError
from kvdelta.schemes.given import parse_json, read_bytes
from kvdelta.schemes.lossless import exactly
from kvdelta.schemes.references import digest_of, reference, split_reference
from kvdelta.schemes.scheme import Scheme

Within = frozenset[Path]  # maps that are being read
Parse = Callable[[str], Scheme]

MOST_LAYERS = 10_000  # of any model: a typing error is not a list of a billion layers
DEEPEST = 16  # maps in maps
KEYS = {"default", "layers", "fitted_on"}
TEXT_FIELDS = ("name", "sha256", "token_sha256")


def read(spec: str, parse: Callable[[str, Within], Scheme], within: Within) -> Scheme:
    """The scheme of "@FILE". Its canonical name is "@FILE#HASH"; a hash that is given must be the content's.

    within: the maps that this one is inside of. UserError for a file that is not there or says something else; the
    messages name the place.
    """
    try:
        path, expected = split_reference(spec.removeprefix("@"))
        data = read_bytes(path, "map")
        content = parse_json(data)
    except UserError as error:
        raise UserError(f"scheme {spec!r}: {error}") from None
    except OSError as error:
        raise UserError(f"scheme {spec!r}: the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"scheme {spec!r} is not JSON: {error}") from None
    if not isinstance(content, dict) or "default" not in content or set(content) - KEYS:
        raise UserError(
            f'scheme {spec!r}: a map of layers has "default" and "layers", and "fitted_on" where it was fitted to a text; '
            "nothing else"
        )
    here = Path(path).resolve()
    if here in within:
        raise UserError(f"scheme {spec!r}: the map names itself, which has no end")
    if len(within) == DEEPEST:
        raise UserError(f"scheme {spec!r}: maps name maps {DEEPEST} deep at most")
    with_files: dict[str, str] = {}

    @functools.cache  # maps that name maps several times each would be read times without end
    def parsed(inner: str) -> Scheme:
        scheme = parse(inner, within | {here})
        if scheme.name != scheme.identity:
            with_files[inner] = scheme.identity
        return scheme

    fitted_on = _texts(content.get("fitted_on", []), spec)
    default = _scheme(content["default"], parsed, f"scheme {spec!r}, default")
    rules = _rules(content.get("layers", {}), parsed, spec)
    # of a map that names other files: what those say counts, not where they are
    said = json.dumps(_without_paths(content, with_files)).encode() if with_files else data
    digest = digest_of(said, expected=expected, what=f"scheme {spec!r}: the file")
    return Scheme(
        "@" + reference(path, digest),
        default.key,
        default.value,
        (*(rule for rule in default.layers if rule[0] not in rules), *sorted(rules.items(), key=lambda rule: rule[0])),
        (*fitted_on, *default.fitted_on),
    )


def _rules(spans: Any, parse: Parse, spec: str) -> dict[int, Scheme]:
    """What "layers" says, by layer."""
    if not isinstance(spans, dict):
        raise UserError(f'scheme {spec!r}: "layers" has a scheme for each layer or range, such as {{"4-7": "int8"}}')
    rules: dict[int, Scheme] = {}
    for span, entry in spans.items():
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", span, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if not first <= last < MOST_LAYERS:
            raise UserError(f"scheme {spec!r}: {span!r} is no layer; give a number such as 4, or a range such as 4-7")
        scheme = _scheme(entry, parse, f"scheme {spec!r}, layers {span}")
        for index in range(first, last + 1):
            if index in rules:
                raise UserError(f"scheme {spec!r}: layer {index} is named twice")
            rules[index] = scheme.for_layer(index)
    return rules


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
    if (
        not isinstance(entry, dict)
        or set(entry) != {"key", "value"}
        or not all(isinstance(spec, str) for spec in entry.values())
    ):
        raise UserError(f'{where}: give a spec, or {{"key": spec, "value": spec}}')
    try:
        sides = [parse(entry[side]) for side in ("key", "value")]
        if any(side.kinds != "full" for side in sides):
            raise UserError("layers=… is said of the whole map, not in it: matched(@FILE):layers=all")
        return joined(*sides)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _without_paths(said: Any, identities: dict[str, str]) -> Any:
    if isinstance(said, dict):
        return {name: _without_paths(part, identities) for name, part in said.items()}
    return identities.get(said, said) if isinstance(said, str) else said


def joined(key: Scheme, value: Scheme) -> Scheme:
    """The keys of one scheme and the values of another, in each layer as the rules of both say."""
    if key == value:
        return key
    rules = [(index, joined(scheme, _open_rules(value, index))) for index, scheme in key.layers]
    rules += [(index, joined(_open_rules(key, index), scheme)) for index, scheme in value.layers]
    name = f"keys {key.name}, values {value.name}"
    return Scheme(name, key.key, value.value, tuple(rules), key.fitted_on + value.fitted_on)


def _open_rules(scheme: Scheme, index: int) -> Scheme:
    """At the layer that a rule names: counted from the end, it may be any."""
    return scheme.for_layer(index) if index >= 0 else scheme


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
