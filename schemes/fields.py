"""Fields of a spec: their types, how a text is read as a value, and those that every scheme takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class Field:
    """One field of a spec: its type (int, float, str, bool, or a Literal of allowed values) and its default."""

    name: str
    type: Any
    default: object
    note: str = ""

    def parse(self, text: str, where: str) -> object:
        choices, kinds = alternatives(self.type)
        for choice in choices:
            if text == shown(choice):
                return choice
        for kind in kinds:
            try:
                return kind(text)
            except UserError as error:  # a file: the error says what is wrong with it
                raise UserError(f"{self.name}: {error}") from None
            except ValueError:
                continue
        allowed = [shown(choice) for choice in choices]
        allowed += ["a number" if kind is float else "a whole number" for kind in kinds]
        guess = get_close_matches(text, [shown(choice) for choice in choices], n=1)
        hint = f"; did you mean {guess[0]}?" if guess else ""
        raise UserError(f"{where}: {self.name}={text!r} is not one of {', '.join(allowed)}{hint}")


def shown(value: object) -> str:
    """A field's value as a spec says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def alternatives(annotation: Any) -> tuple[list[object], list[type]]:
    """The literal values, and the types, that an annotation allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation)), []
    if get_origin(annotation) in (Union, UnionType):
        pairs = [alternatives(option) for option in get_args(annotation)]
        return [value for values, _ in pairs for value in values], [kind for _, kinds in pairs for kind in kinds]
    return ([False, True], []) if annotation is bool else ([], [annotation])


TOKEN_RULES = [
    Field("keep_recent", int, 0, "newest tokens that stay exact"),
    Field("flush_every", int, 0, "block length in tokens; 0: one token group"),
    Field("sink_tokens", int, 0, "first tokens that stay exact"),
]
SCHEME_RULES = [
    Field("only", Literal["both", "key", "value"], "both", "the side that is quantized; the other stays exact"),
    Field("exact_first_layers", int, 0, "first layers that stay exact"),
    Field("exact_last_layers", int, 0, "last layers that stay exact"),
    Field(
        "layers",
        Literal["full", "sliding", "all"],
        "full",
        "the layers that are stored so: those with full attention, those with a sliding window, or both; others stay exact",
    ),
]
RULES = [*TOKEN_RULES, *SCHEME_RULES]
"""What every scheme takes besides its own fields."""


def unknown(what: str, got: str, known: list[str]) -> str:
    """That there is no such thing, with the nearest match and all that there is."""
    guess = get_close_matches(got, known, n=1, cutoff=0.5)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"no {what} {got!r}; {hint}known: {', '.join(known) or 'none'}"


def read_items(
    items: tuple[tuple[str, str], ...],
    known: Mapping[str, Field],
    several: Mapping[str, tuple[str, ...]],
    where: str,
) -> dict[str, Any]:
    """The values of the fields that a spec names. several: names that set more than one field, such as bits.

    UserError for an unknown field, a value that its field does not take, and a field that is set twice.
    """
    given: dict[str, Any] = {}
    for name, text in items:
        targets = several.get(name, (name,))
        if targets[0] not in known:
            raise UserError(unknown("field", name, [*several, *known]))
        for target in targets:
            if target in given:
                raise UserError(f"{target} is set twice")
            given[target] = known[target].parse(text, where)
    return given
