"""Names from elsewhere as output: against a reader of Markdown, and by what a terminal would act on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kvdelta.analysis.reading.escaping import code, markdown, printable
from kvdelta.analysis.reading.tables import as_markdown, csv_text

PIECES = [
    *"aü→1*_`$|\\()[]!&#;<>. \n\t\x1b\x9b\u202e\u2028\udc80", "~~", "**", "__init__", "](b)", "![a](b)", "<b>", "</b>", "<!--", "-->", "<a:b>",
    "&lt;", "&#60;", "&#x3c;", "\\|", "``", "a*b", "a_b", "https://x.org",
]  # fmt: skip
NASTY = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@map[v1].json", "@map[v1].json"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("caf\udce9", "caf\\udce9"),
        ("Δ 95 % ± ü\xa0n", "Δ 95 % ± ü\xa0n"),
    ],
)
def test_what_a_terminal_gets(text, shown):
    assert printable(text) == shown
    printable(text).encode()  # what no encoding has would end the command


def rendered(cell):
    """The text of a table's first cell as a reader shows it; whatever is no text fails."""
    tokens = READER.parse(as_markdown(["name", "x"], [[cell, "1"]]))
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 4
    assert inline[3].content == "1"
    assert {token.type for token in inline[2].children} <= {"text"}
    return inline[2].content and "".join(token.content for token in inline[2].children)


@settings(max_examples=500)
@given(NASTY)
def test_a_cell_of_markdown_shows_the_text(text):
    assert rendered(text) == printable(text).strip(" ")


def test_no_cell_of_markdown_is_mathematics():
    """To readers that take it, as GitHub's does: between single dollars and double ones."""
    dollarmath = pytest.importorskip("mdit_py_plugins.dollarmath").dollarmath_plugin
    reader = MarkdownIt("commonmark").use(dollarmath)

    def kinds(text):
        return {one.type for token in reader.parse(text) for one in [token, *(token.children or [])]}

    for text in ("model $x^{a}$", "a $$x$$ b", "$x$ and $y$"):
        assert {"math_inline", "math_inline_double"} & kinds(text)
        assert not {kind for kind in kinds(markdown(text)) if "math" in kind}
    assert markdown("$x$") == r"\$x\$"


def test_no_cell_of_csv_steers_a_terminal():
    text = csv_text(["scheme", "bits"], [["a\x1b[31m,\nb", 4.25], ["\u202e", None]])
    assert text == 'scheme,bits\n"a\\x1b[31m,\\nb",4.25\n\\u202e,\n'


@pytest.mark.parametrize(
    "text", ["kivi:bits=2,group_size=32", "hadamard(asym2)", "<0.0001", "+0.01 [+0.00, +0.02]", "ΔNLL [95 %]"]
)
def test_what_reads_well_is_left_alone(text):
    assert markdown(text) == text


@given(st.text("a`|\\ \n\x1b", min_size=1, max_size=8).filter(lambda text: text.strip(" ")))
def test_a_span_of_code(text):
    inline = READER.parse(code(text))[1]
    assert [token.type for token in inline.children] == ["code_inline"]
    assert inline.children[0].content.strip(" ") == printable(text).strip(" ")
