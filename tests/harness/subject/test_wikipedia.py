"""The Wikipedia excerpt is clean prose: no markup, no lists, no appendices."""

import sys

import pytest

from kvdelta.harness.subject import wikipedia
from kvdelta.harness.subject.wikipedia import parse_excerpt


def test_is_long_clean_prose():
    parsed, _ = parse_excerpt()
    assert 2.5e6 < len(parsed) < 3.5e6
    assert parsed.startswith("Anarchism\n\nAnarchism is a political philosophy")
    for markup in ("[[", "]]", "{{", "}}", "{|", "''", "==", "<ref", "&nbsp;", "http://", "()", " ,", "\n\n\n"):
        assert markup not in parsed


def test_markup():
    markup = (
        "{{Infobox|a={{b}}}}\n'''Some''' (; {{IPA|x}}) [[thing|things]] of {{convert|3|km|mi}}<ref>no</ref>.\n"
        "{| class=x\n| cell\n|}\n[[File:a.jpg|thumb|A [[cat]].]]\n==Empty==\n== Kept ==\n* one\n* A sentence.\n"
        "==References==\n* A book.\n[[Category:Things]]\n"
    )
    plain = wikipedia._plain(markup, lambda text: text)
    assert plain == "Some things of 3 km.\n\nKept\n\nA sentence."


@pytest.mark.parametrize(
    ("template", "prose"),
    [
        ("{{lang|fr|la vie}}", "la vie"),
        ("{{convert|3|km}}", "3 km"),
        ("{{convert|3|to|5|km|mi}}", "3 to 5 km"),
        ("{{nowrap|a b}}", "a b"),
        ("{{As of|2012}}", "As of 2012"),
        ("{{ndash}}", "–"),
        ("{{cite book|title=x}}", ""),
    ],
)
def test_templates(template, prose):
    assert wikipedia._plain(f"<{template}>.", lambda text: text) == f"<{prose}>."


def test_without_gensim(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "gensim", None)
    with refused(r'cannot be imported .*: pip install "kvdelta\[demo\]", or give a local file'):
        parse_excerpt()


def test_damaged_gensim(monkeypatch, refused):
    monkeypatch.setattr(wikipedia, "EXCERPT_DUMP", "no-such-file.bz2")
    with refused("cannot be read from gensim .*: pip install --force-reinstall gensim"):
        parse_excerpt()
