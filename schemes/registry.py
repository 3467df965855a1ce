"""SCHEMES: name → family; specs such as "kivi:bits=2,group_size=32" or "hadamard(asym2:group_size=32)"."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvdelta.schemes import engines, families, maps
from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.fields import RULES, SCHEME_RULES, TOKEN_RULES, Field, read_items, shown, unknown
from kvdelta.schemes.lossless import exactly
from kvdelta.schemes.scheme import Scheme
from kvdelta.schemes.spec import Spec, check_text, split_spec


def _families() -> dict[str, Family]:
    """Of every file in schemes/families, which says FAMILY, or FAMILIES where it has several; by name. In the order of
    the alphabet: a reader finds a name in the list, and no file or line ranks one above another."""
    there: dict[str, Family] = {}
    for file in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        module = importlib.import_module(file.name)
        for family in getattr(module, "FAMILIES", None) or (module.FAMILY,):
            assert family.name not in there, f"{file.name}: there is a family {family.name} already"
            there[family.name] = family
    return dict(sorted(there.items()))


SCHEMES: dict[str, Family] = _families()
SHORT_NAMES: dict[str, tuple[Family, dict[str, object]]] = {
    short: (family, dict(values)) for family in SCHEMES.values() for short, values in family.short.items()
}


def own_fields(family: Family) -> dict[str, Field]:
    """The fields that a family alone has, in their canonical order."""
    return dict(_keywords(family.build))


@functools.cache
def _keywords(build: Callable[..., object]) -> dict[str, Field]:
    """Of a factory; read once, since every parsing of a spec asks several times."""
    parameters = inspect.signature(build).parameters.values()
    return {p.name: Field(p.name, p.annotation, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def fields_of(family: Family) -> dict[str, Field]:
    """The fields of a family's spec, in their canonical order: its own, then those that every scheme takes."""
    own = own_fields(family)
    taken = {"keep_recent", "flush_every"} if family.own_residual else set()
    return own | {rule.name: rule for rule in RULES if rule.name not in taken and rule.name not in own}


def shorthands(family: Family) -> dict[str, tuple[str, str]]:
    """Names that set both sides: "bits" for key_bits and value_bits."""
    names = fields_of(family)
    both = [name.removeprefix("key_") for name in names if name.startswith("key_")]
    return {name: (f"key_{name}", f"value_{name}") for name in both if f"value_{name}" in names}


def parse_scheme(spec: str) -> Scheme:
    """A scheme from "name" or "name:field=value,field=value", from a short name such as "int4" or "kivi2", from a
    wrapper around another as "hadamard(asym2):sides=key", from an engine's name such as "vllm/int4_per_token_head"
    (schemes.engines), or from a file that maps layers to schemes, as "@FILE" (schemes.maps).

    Raises UserError for an unknown name, field or value (with the nearest match and what is allowed) and for values
    that do not go together.
    """
    return _parse(spec, frozenset())


def _parse(spec: str, within: maps.Within) -> Scheme:
    """within: the maps that are being read, which must not name themselves."""
    spec = spec.strip()
    check_text(spec)
    if spec.startswith("@"):
        return maps.read(spec, _parse, within)
    try:
        parts = split_spec(spec)
        base = _preset(parts) or parts
        family, values = lookup(base.name)
        inner = _inner(family, base.name, base.inner, within)
        both = shorthands(family)
        given = read_items(parts.items, fields_of(family), both, family.name)
        if base is not parts:
            given = read_items(base.items, fields_of(family), both, family.name) | given
    except UserError as error:
        raise UserError(f"scheme {spec!r}: {error}") from None
    for short, value in values.items():  # a short name's own fields give way to what is spelled out
        for target in both.get(short, (short,)):
            given.setdefault(target, value)
    return build_scheme(family, given, spec, inner)


def calibrated_family(spec: str) -> tuple[Family, dict[str, object]]:
    """The family of a spec that is to be calibrated, and the values of its own fields; UserError as `parse_scheme`, and
    for a family that needs no calibration."""
    parse_scheme(spec)
    parts = split_spec(spec)
    family, values = lookup(parts.name)
    if family.calibrate is None:
        raise UserError(f"scheme {spec!r} needs no calibration: it can be scored as it is")
    given = values | read_items(parts.items, fields_of(family), shorthands(family), family.name)
    return family, {name: given.get(name, field.default) for name, field in own_fields(family).items()}


def _preset(parts: Spec) -> Spec | None:
    """What an engine's name stands for (schemes.engines), taken apart; None for a scheme's own name."""
    if parts.name in SCHEMES or parts.name in SHORT_NAMES:
        return None
    preset = engines.find(parts.name)
    if preset is not None and parts.inner is not None:
        raise UserError(f"{parts.name} is a whole scheme, {preset.spec}, and wraps no other")
    return None if preset is None else split_spec(preset.spec)


def _inner(family: Family, name: str, inside: str | None, within: maps.Within) -> Scheme | None:
    """What a wrapper wraps."""
    if not family.wraps:
        if inside is not None:
            wrappers = ", ".join(other.name for other in SCHEMES.values() if other.wraps)
            raise UserError(f"{name} wraps no other scheme; those that do: {wrappers}")
        return None
    if not inside:
        raise UserError(f"{name} wraps another scheme: give it in parentheses, as {family.example}")
    scheme = _parse(inside, within)
    if not inside.startswith("@") and not family.keeps_rules:
        outer = [item for item in split_spec(inside).items if item[0] in {rule.name for rule in RULES}]
        if outer:
            moved = ",".join(f"{field}={value}" for field, value in outer)
            raise UserError(
                f"{outer[0][0]} says how a whole scheme is used, not the quantizer in {name}(…); give it outside, as "
                f"{name}(…):{moved}"
            )
    return scheme


def build_scheme(family: Family, given: dict[str, Any], spec: str, inner: Scheme | None = None) -> Scheme:
    """A scheme from values of a family's fields; `spec` is what messages quote."""
    known, own = fields_of(family), own_fields(family)
    full = {name: given.get(name, field.default) for name, field in known.items()}
    mine = {name: full[name] for name in own}
    tokens = {rule.name: given[rule.name] for rule in TOKEN_RULES if rule.name in given and rule.name not in own}
    scheme_rules = {rule.name for rule in SCHEME_RULES}

    def plain(around: Scheme | None) -> tuple[TensorScheme, TensorScheme]:
        return family.build(*(around.sides.values() if around else ()), **mine)

    def changes(name: str) -> bool:
        """Whether a rule for tokens says something: it may say 0 where the family, or what it wraps, has another rule."""
        sides = [side for variant in (inner.variants if inner else [None]) for side in plain(variant)]
        return any(getattr(replace(side, **{name: tokens[name]}), name) != getattr(side, name) for side in sides)

    def built(around: Scheme | None, named: dict[str, Any]) -> Scheme:
        """Around each rule of the inner scheme too, to which what is said of the whole scheme does not belong."""
        key, value = (replace(side, **tokens) for side in plain(around))
        name = canonical_name(family, named, around)
        if around is None:
            return Scheme(name, key, value, kinds=full["layers"])
        alone = {field: value for field, value in named.items() if field not in scheme_rules}
        rules = tuple((index, built(scheme, alone)) for index, scheme in around.layers)
        return Scheme(name, key, value, rules, around.fitted_on, full["layers"] if "layers" in given else around.kinds)

    try:
        if inner and inner.kinds != "full" and "layers" in given:
            raise UserError(f"layers={given['layers']} here, and {inner.kinds} in {inner.name}: say it once")
        said = {name: value for name, value in full.items() if name in own or name in scheme_rules}
        whole = built(inner, said | {name: value for name, value in tokens.items() if changes(name)})
        return _with_scheme_rules(whole, full["only"], full["exact_first_layers"], full["exact_last_layers"])
    except UserError as error:
        raise UserError(f"scheme {spec!r}: {error}") from None


def _with_scheme_rules(scheme: Scheme, only: Any, first: Any, last: Any) -> Scheme:
    for name, count in (("exact_first_layers", first), ("exact_last_layers", last)):
        if not 0 <= count <= maps.MOST_LAYERS:
            raise UserError(f"{name}={count}: a number of layers is not negative, nor over {maps.MOST_LAYERS}")
    used = replace(maps.one_side(scheme, only), name=scheme.name)
    exempt = [*range(first), *range(-last, 0)]
    if not exempt:
        return used
    kept, exact = [rule for rule in used.layers if rule[0] not in exempt], Scheme("exact", *exactly())
    return replace(used, layers=(*kept, *((index, exact) for index in exempt)))


def canonical_name(family: Family, values: dict[str, object], inner: Scheme | None = None) -> str:
    """The spec that names bits and types always, own fields and those of the whole scheme where they differ from their default, and
    rules for tokens wherever there are values of them; in a fixed order."""
    known, both = fields_of(family), shorthands(family)
    sides = {side: name for name, pair in both.items() for side in pair}
    rules = {rule.name for rule in TOKEN_RULES} & values.keys() - own_fields(family).keys()
    always = {f"{side}{what}" for what in ("bits", "type") for side in ("", "key_", "value_")} | rules
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
        if value != field.default or field.name in always:
            parts.append(f"{name}={shown(value)}")
    head = f"{family.name}({inner.name})" if inner else family.name
    return head + (":" + ",".join(parts) if parts else "")


def lookup(name: str) -> tuple[Family, dict[str, object]]:
    """The family of a name, and the fields that a short name sets; of an engine's name the family that it resolves to.
    UserError for a name that there is not."""
    if name in SCHEMES:
        return SCHEMES[name], {}
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if preset := _preset(Spec(name, None, ())):
        return lookup(preset.name)
    raise UserError(unknown("scheme", name, [*SCHEMES, *SHORT_NAMES]))
