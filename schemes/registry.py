"""SCHEMES: name → family; specs such as "kivi:bits=2,group_size=32"."""

import inspect
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from schemes import asymmetric, exact, hqq, kivi, layers, symmetric
from schemes.base import Scheme, TensorScheme
from schemes.family import Family

SCHEMES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (exact, symmetric, asymmetric, hqq, kivi)}
SHORT_NAMES: dict[str, tuple[Family, dict[str, object]]] = {
    short: (family, dict(values)) for family in SCHEMES.values() for short, values in family.short.items()
}


@dataclass(frozen=True)
class Field:
    """One field of a spec: its type (int, float, or a Literal of allowed values) and its default."""

    name: str
    type: Any
    default: object
    note: str = ""

    def parse(self, text: str, where: str) -> object:
        choices, kinds = _alternatives(self.type)
        for choice in choices:
            if text == str(choice):
                return choice
        for kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
        allowed = [str(choice) for choice in choices]
        allowed += ["a number" if kind is float else "a whole number" for kind in kinds]
        guess = get_close_matches(text, [str(choice) for choice in choices], n=1)
        hint = f"; did you mean {guess[0]}?" if guess else ""
        raise ValueError(f"{where}: {self.name}={text!r} is not one of {', '.join(allowed)}{hint}")


def _alternatives(annotation: Any) -> tuple[list[object], list[type]]:
    """The literal values, and the types, that an annotation allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation)), []
    if get_origin(annotation) in (Union, UnionType):
        pairs = [_alternatives(option) for option in get_args(annotation)]
        return [value for values, _ in pairs for value in values], [kind for _, kinds in pairs for kind in kinds]
    return [], [annotation]


_RULES = [
    Field("keep_recent", int, 0, "newest tokens that stay exact"),
    Field("flush_every", int, 0, "block length in tokens; 0: one token group"),
    Field("sink_tokens", int, 0, "first tokens that stay exact"),
]


def fields_of(family: Family) -> dict[str, Field]:
    """The fields of a family's spec, in their canonical order; every family also takes the rules for exact tokens."""
    own = [
        Field(parameter.name, parameter.annotation, parameter.default)
        for parameter in inspect.signature(family.build).parameters.values()
    ]
    rules = [rule for rule in _RULES if rule.name == "sink_tokens" or not family.own_residual]
    return {field.name: field for field in own + rules}


def shorthands(family: Family) -> dict[str, tuple[str, str]]:
    """Names that set both sides: "bits" for key_bits and value_bits."""
    names = fields_of(family)
    both = [name.removeprefix("key_") for name in names if name.startswith("key_")]
    return {name: (f"key_{name}", f"value_{name}") for name in both if f"value_{name}" in names}


def parse_scheme(spec: str) -> Scheme:
    """A scheme from "name" or "name:field=value,field=value", from a short name such as "int4" or "kivi2", or from a
    file that maps layers to schemes, as "@FILE" (schemes.layers).

    Raises ValueError for an unknown name, field or value (with the nearest match and what is allowed) and for values
    that do not go together.
    """
    if spec.strip().startswith("@"):
        return layers.read(spec.strip(), parse_scheme)
    name, colon, rest = spec.strip().partition(":")
    family, values = _lookup(name, spec)
    values = dict(values)
    known, both = fields_of(family), shorthands(family)
    given: dict[str, object] = {}
    for item in rest.split(",") if colon else []:
        field, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not text:
            raise ValueError(f"scheme {spec!r}: {item!r} is not field=value; an example: {name}:{_example(family)}")
        targets = both.get(field, (field,))
        if targets[0] not in known:
            raise ValueError(f"scheme {spec!r}: {_unknown('field', field, [*both, *known])}")
        for target in targets:
            if target in given:
                raise ValueError(f"scheme {spec!r}: {target} is set twice")
            given[target] = known[target].parse(text, f"scheme {spec!r}")
    for short in list(values):  # a short name's own fields give way to what is spelled out
        for target in both.get(short, (short,)):
            given.setdefault(target, values[short])
    return build_scheme(family, given, spec)


def build_scheme(family: Family, given: dict[str, object], spec: str) -> Scheme:
    known = fields_of(family)
    full = {name: given.get(name, field.default) for name, field in known.items()}
    rules = {rule.name: full.pop(rule.name) for rule in _RULES if rule.name in full}
    for rule in [rule for rule in rules if rule not in given]:
        del rules[rule]
    try:
        key, value = family.build(**full)
        key, value = _with_rules(key, rules), _with_rules(value, rules)
    except ValueError as error:
        raise ValueError(f"scheme {spec!r}: {error}") from None
    return Scheme(canonical_name(family, {**full, **rules}), key, value)


def _with_rules(side: TensorScheme, rules: dict[str, Any]) -> TensorScheme:
    return replace(side, **rules) if rules else side


def canonical_name(family: Family, values: dict[str, object]) -> str:
    """The spec that names bits always and other fields where they differ from their default, in a fixed order."""
    known, both = fields_of(family), shorthands(family)
    sides = {side: name for name, pair in both.items() for side in pair}
    parts: list[str] = []
    for name, field in known.items():
        short = sides.get(name)
        if short and values.get(both[short][0]) == values.get(both[short][1]):
            if name != both[short][0]:
                continue
            name = short
            value = values[both[short][0]]
        else:
            value = values.get(field.name, field.default)
        if value != field.default or field.name.endswith("_bits"):
            parts.append(f"{name}={value}")
    return family.name + (":" + ",".join(parts) if parts else "")


def _lookup(name: str, spec: str) -> tuple[Family, dict[str, object]]:
    if name in SCHEMES:
        return SCHEMES[name], {}
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    raise ValueError(f"scheme {spec!r}: {_unknown('scheme', name, [*SCHEMES, *SHORT_NAMES])}")


def _unknown(what: str, got: str, known: list[str]) -> str:
    guess = get_close_matches(got, known, n=1, cutoff=0.5)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"no {what} {got!r}; {hint}known: {', '.join(known) or 'none'}"


def _example(family: Family) -> str:
    name, field = next(iter(fields_of(family).items()))
    return f"{name}={field.default}"
