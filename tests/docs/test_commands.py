"""Every command in README and docs can be typed, and every session prints what the page says."""

import os
import re
import subprocess
import sys

import pytest
import typer

from kvdelta.analysis.cli.main import app

from .commands import FENCED, PAGES, PLACEHOLDER, ROOT, name_of, sessions, typed, words_of

TYPED = [
    pytest.param(words, inline, id=f"{name_of(page)}: {' '.join(words)}")
    for page in PAGES
    for words, inline in typed(page)
]
SESSIONS = [
    pytest.param(command, printed, id=f"{name_of(page)}: {command}")
    for page in PAGES
    for command, printed in sessions(page)
]
WRITTEN_FOR = {"N": "1", "K": "1", "SECONDS": "1", "ENGINE": "vllm"}
INCOMPLETE = ("MissingParameter", "BadOptionUsage")
"""A sentence may name a command, or a flag, without all that belongs to it."""
LIGHT = ("show", "carry", "relate", "verify", "schemes", "--version", "report", "--help")
"""Commands that load no model; the others take a minute or more."""


@pytest.mark.parametrize(("words", "inline"), TYPED)
def test_it_can_be_typed(words, inline):
    """The command is there, it has these flags, and they take these values."""
    command = typer.main.get_command(app)
    words = [WRITTEN_FOR.get(word, word) for word in words]
    name = "kvdelta"
    while hasattr(command, "commands"):
        if not words or words[0].startswith("--") or PLACEHOLDER.search(words[0]):
            return  # kvdelta --help, kvdelta reproduce
        name = words.pop(0)
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
    if "--help" in words or "--config" in words:  # one prints, the other reads a file
        return
    try:
        command.make_context(name, words)
    except Exception as error:
        if not inline or type(error).__name__ not in INCOMPLETE:
            raise


def test_pages_have_commands():
    """The search finds them."""
    assert len(TYPED) > 100
    assert any("reproduce" in parameter.values[0] for parameter in TYPED)
    assert words_of("python -m x  # kvdelta compare") is None
    assert words_of("kvdelta show a --format csv > table.csv") == ["show", "a", "--format", "csv"]


def session(command, printed, folder):
    for name in ("results", "examples"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    words = words_of(command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-m", "kvdelta.analysis.cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr
    expected = [line.rstrip() for line in printed]
    got = [line.rstrip() for line in done.stdout.splitlines()]
    both = [*got, *(line.rstrip() for line in done.stderr.splitlines())]  # as a terminal shows them
    assert matches(expected, got) or matches(expected, both), "\n".join(
        ["the page:", *expected, "", "it prints:", *both]
    )


def matches(expected, got):
    """A line "…" stands for any lines, … in a line for anything."""
    pattern = ""
    for line in expected:
        if line == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(map(re.escape, line.split("…"))) + r"\n"
    return (
        re.fullmatch(
            pattern,
            "".join(line + "\n" for line in got if line)
            if "" not in expected
            else "".join(line + "\n" for line in got),
        )
        is not None
    )


@pytest.mark.parametrize(("command", "printed"), [one for one in SESSIONS if words_of(one.values[0])[0] in LIGHT])
def test_it_prints_what_the_page_says(command, printed, tmp_path):
    session(command, printed, tmp_path)


@pytest.mark.real_model
@pytest.mark.parametrize(("command", "printed"), [one for one in SESSIONS if words_of(one.values[0])[0] not in LIGHT])
def test_it_prints_what_the_page_says_of_a_model(command, printed, tmp_path):
    session(command, printed, tmp_path)


def test_a_session_that_differs_is_found():
    assert matches(["a", "…", "z 1…"], ["a", "b", "c", "z 12"])
    assert not matches(["a", "z"], ["a", "b", "z"])
    assert not matches(["a 1.5"], ["a 1.6"])


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        path, _, _ = link.partition("#")
        if path and not path.startswith(("http:", "https:")):
            assert (page.parent / path).exists(), link


def test_the_table_of_the_readme_is_that_of_its_record(tmp_path):
    blocks = [block for language, block in FENCED.findall((ROOT / "README.md").read_text()) if language == ""]
    (table,) = (block for block in blocks if "99.9 %" in block)
    command = [sys.executable, "-m", "kvdelta.analysis.cli.main", "show", str(ROOT / "results/demo")]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=True)
    printed = {line.rstrip() for line in done.stdout.splitlines()}
    assert {line.rstrip() for line in table.splitlines()} <= printed
