"""The pages that people read: their tables, and their prose as one line."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

FENCED = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?:^\|.*\|[ \t]*\n?){2,}", re.MULTILINE)
TAG = re.compile(r"</?[a-z][^<>]*>")
TARGET = re.compile(r"\]\([^()\s]*\)")
LABEL = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class MarkdownTable:
    """place: file and line of the header. Cells are as they are written."""

    place: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def has_figures(self) -> bool:
        return any(char.isdigit() for row in (self.header, *self.rows) for cell in row for char in cell)


@cache
def pages() -> dict[str, str]:
    """Text by file name: README.md and docs/*.md, what stands in fences left out."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {file.relative_to(ROOT).as_posix(): _unfenced(file.read_text(encoding="utf-8")) for file in files}


def _unfenced(text: str) -> str:
    """As many lines as before, so that places hold."""
    return FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)


@cache
def tables() -> list[MarkdownTable]:
    """Of all pages."""
    found = []
    for name, text in pages().items():
        for block in TABLE.finditer(text):
            header, rule, *rows = map(_cells, block[0].strip().splitlines())
            if all(set(cell) <= set(":- ") for cell in rule):
                place = f"{name}:{text.count(chr(10), 0, block.start()) + 1}"
                found.append(MarkdownTable(place, header, tuple(rows)))
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1])


def label_of(cell: str) -> str:
    """The scheme that a row is of: what stands in its first backticks, or all of it."""
    found = LABEL.search(cell)
    return found[1] if found else cell.strip("* ")


@cache
def sentences() -> dict[str, str]:
    """By page, in one line each: what stands in tables too; without targets of links, bold and italics."""
    return {name: one_line(text) for name, text in pages().items()}


@cache
def prose() -> dict[str, str]:
    """The same without tables."""
    return {name: one_line(TABLE.sub("\n", text)) for name, text in pages().items()}


def one_line(text: str) -> str:
    return " ".join(TARGET.sub("]", TAG.sub(" ", text)).replace("**", "").split())
