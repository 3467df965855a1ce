"""Text from elsewhere (names, labels, messages) as output: nothing in it may steer the terminal or be read as markup."""

import re
import unicodedata

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are not drawn but acted on: control and format characters (direction among them), lone
surrogates (bytes of a file name that are no UTF-8), separators of lines and paragraphs."""

_MARKUP = re.compile(
    r"""
    [\\|`*~$]                           # code, emphasis, struck out, mathematics, and the end of a table's cell
    | <(?=[A-Za-z/!?])                  # a tag, but not a number that is less than another
    | &(?=\#?\w+;)                      # a character by its name
    | (?<=\])\(                         # a link
    | (?<![^\W_])_                       # emphasis; inside a word an underscore opens none
    """,
    re.VERBOSE,
)


def printable(text: str) -> str:
    """For a terminal: one line, with what would steer it as a visible escape, such as \\x1b."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in STEERING else char for char in text
    )


def markdown(text: str) -> str:
    """For Markdown, in a table's cell too: it renders as what `printable` gives."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """For Markdown, as a span of code: fenced by more backticks than follow each other in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{printable(text)}{space}{fence}"
