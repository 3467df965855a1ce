"""Every scheme with its fields, defaults, source and bits, and one scheme in detail, from the registry alone."""

import json
import textwrap
from typing import Any

import torch

from kvdelta.analysis.reading import tables
from kvdelta.schemes import SCHEMES, TokenStore, parse_scheme
from kvdelta.schemes.engines import ENGINES, LEFT_OUT, presets
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.fields import RULES, Field, alternatives, shown
from kvdelta.schemes.registry import fields_of, lookup, own_fields, shorthands

TOKENS, HEADS = 4096, 2  # what the bits are measured on; the exact tail of a residual window counts
LISTED_CHANNELS = 64


def catalogue() -> tuple[list[str], list[list[str]]]:
    """Header and rows; bits of keys and values measured over 4096 tokens of 2 heads with 64 channels."""
    header = ["scheme", "what", "fields", "short names", "bits K / V", "source"]
    body = []
    for family in SCHEMES.values():
        fields = ", ".join(f"{field.name}={shown(field.default)}" for field in own_fields(family).values())
        name = f"{family.name}(…)" if family.wraps else family.name
        body.append([name, family.summary, fields or "–", ", ".join(family.short) or "–", _bits(family), family.source])
    return header, body


def _bits(family: Family, items: str = "", channels: int = LISTED_CHANNELS) -> str:
    if family.calibrate is not None:
        return "measured once it is calibrated"
    return _measured(family.example + (f":{items}" if items else ""), channels)


def _measured(spec: str, channels: int) -> str:
    x = torch.randn(1, HEADS, TOKENS, channels, generator=torch.Generator().manual_seed(0))
    scheme = parse_scheme(spec)
    if any(quantizer.needs_place for side in scheme.sides.values() for quantizer in side.quantizers):
        return "measured in a model"
    try:
        scheme.check(channels)
    except UserError as error:
        return f"not for this width: {error}"
    measured = []
    for side in scheme.sides.values():
        store = TokenStore(side)
        store.append(x)
        measured.append(f"{8 * store.counted_bytes() / store.elements:.2f}")
    return " / ".join(measured)


def engine_names(engine: str, format: str) -> str:
    """The names of an engine, with what they resolve to, bits, its flags and where that departs, as table (for people), md, json
    or csv; then those that are left out, and why. UserError for an engine that is not known."""
    body = [
        [
            f"{engine}/{name}",
            preset.spec,
            _measured(preset.spec, LISTED_CHANNELS),
            preset.flags or "–",
            preset.departs or "–",
        ]
        for name, preset in presets(engine).items()
    ]
    body += [
        [f"{engine}/{name}", "none", "–", "–", f"left out: {why}"] for name, why in LEFT_OUT.get(engine, {}).items()
    ]
    return _printed(["scheme", "spec", "bits K / V", "flags", "departs"], body, format)


def listing(format: str) -> str:
    """All of it as table (for people), md, json or csv."""
    header, body = catalogue()
    printed = _printed(header, body, format)
    if format in ("json", "csv", "md"):
        return printed
    rules = ", ".join(f"{rule.name}={shown(rule.default)}" for rule in RULES)
    return "\n".join([printed, SPECS.format(rules=rules, engines=", ".join(ENGINES))])


def _printed(header: list[str], body: list[list[str]], format: str) -> str:
    if format == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in body], indent=1, ensure_ascii=False)
    if format == "csv":
        return tables.csv_text(header, body).rstrip("\n")
    if format == "md":
        return tables.as_markdown(header, body).rstrip("\n")
    return "\n".join(
        "\n".join([name, *(f"    {what}: {text}" for what, text in zip(header[1:], rest, strict=True))])
        for name, *rest in body
    )


SPECS = """
A spec is name:field=value,field=value, such as kivi:bits=2,group_size=64. A field without its key_ or value_ (bits, axis)
sets both sides; a short name with fields, such as int4:group_size=32, changes its settings. Wrappers nest, fields of each
behind its parentheses: hadamard(clip(asym2:group_size=128):c=0.9). A map of layers to schemes is a file, @map.json.
Every scheme also takes {rules}.
kvdelta schemes --detail NAME explains one; kvdelta schemes --engine NAME has the names of an engine's own cache types, such as
vllm/int4_per_token_head: {engines}.

Beside schemes --scheme takes caches that evict, sliding-window:bits=4 and sink-window:sinks=4,bits=4 (or tokens=384), and
transformers' own, hf-hqq:bits=4,axis=0, hf-quanto:bits=4,axis=0 and hf-fp8; any other cache comes with --cache."""


def detail(name: str) -> str:
    """One scheme for people: formula, source, fields, effective bits, when it is good, when it fails. UserError for a
    name that there is not."""
    family, _ = lookup(name)
    head = f"{family.name}(…)" if family.wraps else family.name
    facts = {
        "formula": family.formula,
        "good for": family.good,
        "fails at": family.fails,
        "source": family.source,
        "compared": family.compared or "with no other code yet",
        "short names": ", ".join(_short(short, values) for short, values in family.short.items()) or "none",
    }
    lines = [f"{head}: {family.summary}", ""]
    for what, text in facts.items():
        lines += textwrap.wrap(
            text, 108, initial_indent=f"{what:12}", subsequent_indent=" " * 12, break_on_hyphens=False
        )
    lines += ["", "fields      (name=default: values)"]
    lines += [f"  {_field(field)}" for field in fields_of(family).values()]
    if both := shorthands(family):
        lines.append(f"  {', '.join(both)}: both sides at once")
    lines += [
        "",
        f"bits K / V  measured over {TOKENS} tokens, {HEADS} heads; exact tokens count 16",
        *_bit_lines(family),
    ]
    return "\n".join(lines)


def _short(name: str, values: Any) -> str:
    return f"{name} ({', '.join(f'{field}={shown(value)}' for field, value in values.items())})"


def _field(field: Field) -> str:
    choices, kinds = alternatives(field.type)
    kind = {float: "a number", int: "a whole number"}
    allowed = [shown(choice) for choice in choices if choice != ""] + [kind.get(one, "a file") for one in kinds]
    note = f"; {field.note}" if field.note else ""
    default = shown(field.default) or "(none)"
    return f"{field.name}={default}: {', '.join(allowed)}{note}"


def _bit_lines(family: Family) -> list[str]:
    """Every width of code, for heads of 64 and of 128 channels."""
    names = own_fields(family).keys() | shorthands(family).keys()
    if "bits" in names:
        own = own_fields(family)
        first, *other = [own["bits"]] if "bits" in own else [own["key_bits"], own["value_bits"]]
        widths = alternatives(first.type)[0]
        settings = [f"bits={bits}" for bits in widths if all(bits in alternatives(side.type)[0] for side in other)]
    else:
        settings = [""]
    if family.calibrate is not None:
        return [f"  {_bits(family)}"]
    return [
        f"  {family.example}{':' + items if items else ''}: "
        + ", ".join(f"{channels} channels {_bits(family, items, channels)}" for channels in (64, 128))
        for items in settings
    ]
