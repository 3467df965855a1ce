"""The grammar of specs: name, name:field=value,field=value, wrapper(spec), wrapper(spec):field=value; @FILE. What stands
in quotes belongs to a value, whatever it is (schemes.references)."""

import re
import unicodedata
from dataclasses import dataclass

from kvdelta.schemes.errors import UserError

LONGEST = 4096  # characters of a spec, the path of a file in it included
DEEPEST = 16  # wrappers around each other


@dataclass(frozen=True)
class Spec:
    """A spec taken apart; nothing is looked up yet. inner: what stands in the parentheses of a wrapper."""

    name: str
    inner: str | None
    items: tuple[tuple[str, str], ...]


def split_spec(text: str) -> Spec:
    """Take a spec apart. UserError where parentheses or quotes do not match, text follows them, or an item is not
    field=value."""
    if text.count('"') % 2:
        raise UserError("a quote is not closed; a file name in quotes has one before and one behind it")
    depth, opened, closed = 0, -1, -1
    for i, letter in enumerate(_covered(text)):
        if letter == "(":
            depth += 1
            opened = i if opened < 0 else opened
        elif letter == ")":
            depth -= 1
            if depth < 0:
                raise UserError(f"the ) at character {i + 1} closes nothing")
            closed = i if depth == 0 and closed < 0 else closed
        elif letter == ":" and opened < 0:
            break  # parentheses behind a colon belong to a value
    if depth:
        raise UserError(f"the ( at character {opened + 1} is not closed")
    if opened < 0:
        name, colon, rest = text.partition(":")
        return Spec(name.strip(), None, _items(rest, name) if colon else ())
    name, inner, rest = text[:opened].strip(), text[opened + 1 : closed].strip(), text[closed + 1 :].strip()
    if not rest:
        return Spec(name, inner, ())
    if not rest.startswith(":"):
        raise UserError(f"{rest!r} follows the ); fields of {name} come as {name}({inner}):field=value")
    return Spec(name, inner, _items(rest[1:], f"{name}({inner})"))


def _covered(text: str) -> str:
    """With dots for what stands in quotes, at the same places."""
    return re.sub(r'"[^"]*"', lambda quote: "." * len(quote[0]), text)


def _items(text: str, head: str) -> tuple[tuple[str, str], ...]:
    items: list[tuple[str, str]] = []
    commas = [i for i, letter in enumerate(_covered(text)) if letter == ","]
    for begin, end in zip([0, *(i + 1 for i in commas)], [*commas, len(text)], strict=True):
        item = text[begin:end]
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            quotes = '; a file name with a comma comes in quotes, "a,b"' if items and "." in item else ""
            raise UserError(f"{item.strip()!r} is not field=value; a spec is {head}:field=value,field=value{quotes}")
        items.append((field, value))
    return tuple(items)


def check_text(spec: str) -> None:
    """UserError for what no spec can be: too long, nested too deep, or more than a line of text."""
    if len(spec) > LONGEST:
        raise UserError(f"scheme {spec[:40]!r}… has {len(spec)} characters; none that can be meant has over {LONGEST}")
    if spec.count("(") > DEEPEST:
        raise UserError(
            f"scheme {spec[:40]!r}… has {spec.count('(')} parentheses, and wrappers nest {DEEPEST} deep at most"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in spec):
        raise UserError(
            f"scheme {spec!r}: a spec is one line of text, without control characters; a file with such a name must be renamed"
        )
