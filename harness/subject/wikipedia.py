"""The English Wikipedia excerpt that gensim ships as test data, as plain prose."""

import bz2
import html
import re
from collections.abc import Callable
from itertools import pairwise

from kvdelta.harness.subject.errors import TextError, one_line

EXCERPT = "wikipedia-excerpt"
EXCERPT_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
EXCERPT_VERSION = 1  # raise it when the parser changes: the parsed text is cached under it
SHORT_ARTICLE = 3000  # characters: below are disambiguation pages and stubs; 86 articles are longer


def parse_excerpt() -> tuple[str, str]:
    try:
        import gensim
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
        from gensim.test.utils import datapath
    except ImportError as error:
        raise TextError(
            f'"{EXCERPT}" comes with gensim, which cannot be imported ({one_line(error)}): pip install '
            '"kvdelta[demo]", or give a local file (--text FILE)'
        ) from error
    articles = []
    try:
        with bz2.open(datapath(EXCERPT_DUMP), "rb") as dump:
            pages = extract_pages(dump, filter_namespaces=("0",))  # pyright: ignore[reportArgumentType]
            for title, markup, _ in pages:
                body = _plain(markup, filter_wiki)
                if not markup.lower().startswith("#redirect") and len(body) >= SHORT_ARTICLE:
                    articles.append(f"{title}\n\n{body}")
    except (OSError, EOFError) as error:
        raise TextError(
            f'"{EXCERPT}" cannot be read from gensim {gensim.__version__} ({one_line(error)}): pip install '
            "--force-reinstall gensim, or give a local file (--text FILE)"
        ) from error
    return "\n\n".join(articles) + "\n", gensim.__version__


# Wiki markup to plain paragraphs. gensim's filter_wiki is made for word counts: it leaves table cells, captions,
# quote marks of bold text and "Alabama () is", so what it does badly is done before and after it.
_NOT_TEXT = re.compile(
    r"<!--.*?-->|<ref\b[^<>]*/>|<(ref|gallery|math|timeline|table|score|imagemap|code|pre)\b.*?</\1\s*>", re.S | re.I
)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")  # the innermost ones
_TABLE = re.compile(r"^[ :*]*\{\|(?:(?!\{\|).)*?^[ :*]*\|\}", re.S | re.M)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NO_PROSE_LINK = re.compile(r"\s*(file|image|category|media|template|[a-z]{2,3}(-[a-z]+)?|simple)\s*:", re.I)
_APPENDIX = re.compile(
    r"^==\s*(?:see also|notes?|references?|citations?|footnotes?|sources?|external links|further reading|bibliography|"
    r"works cited|publications|filmography|discography|gallery)\b[^=\n]*==\s*$.*?(?=^==[^=]|\Z)",
    re.S | re.M | re.I,
)
_SIGNS = {"·": " ", "ndash": "–", "mdash": "—", "snd": " – ", "spaced ndash": " – ", "'": "'", "=": "=", "nbsp": " "}
_TIDY = (
    (r"'{2,5}", ""),  # bold, italic
    (r"\(\s*[;,:/–\s]*\)", ""),  # what an emptied template leaves
    (r"\(\s*[;,:]\s*", "("),
    (r"[;,:]?\s+\)", ")"),
    (r"[ \t]+([,.;:)])", r"\1"),
    (r"[ \t]{2,}", " "),
)


def _plain(markup: str, filter_wiki: Callable[[str], str]) -> str:
    """The prose of an article: headings and whole sentences, one paragraph a block, no appendices, no bare lists."""
    text = html.unescape(html.unescape(markup)).replace("\xa0", " ")
    text = _NOT_TEXT.sub("", text)
    for pattern, replacement in ((_TEMPLATE, _template), (_TABLE, ""), (_LINK, _link)):
        count = 1
        while count:  # from the inside out
            text, count = pattern.subn(replacement, text)
    text = filter_wiki(_APPENDIX.sub("", text))
    for pattern, replacement in _TIDY:
        text = re.sub(pattern, replacement, text)
    blocks: list[tuple[str, bool]] = []
    for line in map(str.strip, text.splitlines()):
        if heading := re.fullmatch(r"=+\s*(.*?)\s*=+", line):
            blocks.append((heading[1], True))
        elif line[:1] not in ("|", "!", "{", "}") and not re.match(r"(file|image):", line, re.I):
            sentence = line.lstrip("*#:; ")
            if re.search(r"[.!?:;…][\"'”’)]*$", sentence):
                blocks.append((sentence, False))
    heads_nothing = [is_heading and next_is for (_, is_heading), (_, next_is) in pairwise([*blocks, ("", True)])]
    return "\n\n".join(block for (block, _), empty in zip(blocks, heads_nothing, strict=True) if not empty)


def _template(match: re.Match[str]) -> str:
    name, *fields = (field.strip() for field in match[1].split("|"))
    plain = [field for field in fields if "=" not in field]
    name = name.lower()
    if name in ("lang", "transl") and len(plain) > 1:
        return plain[-1]
    if name == "convert" and len(plain) > 1:
        return " ".join(plain[: 4 if plain[1] in ("-", "to", "–", "and", "x", "by", "or") else 2])
    if name in ("nowrap", "small", "smaller", "quote", "vanchor", "nihongo", "angbr") and plain:
        return plain[0]
    if name == "as of" and plain:
        return f"As of {plain[0]}"
    return _SIGNS.get(name, "")


def _link(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    return "" if _NO_PROSE_LINK.match(target) else label.rsplit("|", 1)[-1] or target.lstrip(":")
