"""What pages tell a reader to type."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("CONTRIBUTING.md")),
    ROOT / "results/README.md",
]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"`(kvdelta [^`]+)`")
PLACEHOLDER = re.compile(r"…|\bRUN\b|\bFOLDER\b|\bNAME\b|\bFILE\b|\bENGINE\b|\bCOMMAND\b|\bSECONDS\b")


def name_of(page):
    return str(page.relative_to(ROOT))


def typed(page):
    """The kvdelta commands of a page, in sentences and in blocks: (its words, whether it stands in a sentence)."""
    text = page.read_text()
    sentences = INLINE.findall(FENCED.sub("", text).replace("\n", " "))
    found = []
    for language, block in FENCED.findall(text):
        if language in ("sh", "bash", "console", ""):
            lines = block.replace("\\\n", " ").splitlines()
            prompted = [line[2:] for line in lines if line.startswith("$ ")]
            found += [line for line in (prompted if language == "console" or prompted else lines) if "kvdelta " in line]
    return [(words, lines is sentences) for lines in (sentences, found) for line in lines if (words := words_of(line))]


def words_of(line):
    """Those of `kvdelta`, wherever it stands in a line of shell; None where there is none."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in a sentence
        return None
    if "kvdelta" not in words:
        return None
    words = words[words.index("kvdelta") + 1 :]
    end = next(
        (i for i, word in enumerate(words) if word in ("|", ">", "2>", "&&", ";") or word.endswith(";")), len(words)
    )
    return words[:end] or None


def sessions(page):
    """Commands of a page with what they print: (command, expected lines)."""
    found = []
    for language, block in FENCED.findall(page.read_text()):
        if language != "console":
            continue
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command.strip(), printed.rstrip("\n").splitlines()))
    return found
