"""What a person sees: a table's cells as they are, and progress redrawn in one row of a terminal."""

import os
import re
import sys
from contextlib import redirect_stderr

import pytest
from rich.cells import cell_len

from kvdelta.analysis.cli import starting, terminal
from kvdelta.analysis.cli.starting import note, say


@pytest.mark.parametrize("name", ["@map[v1].json", "[/a]", "[bold]x[/bold]", ":smile:", "[red]", "\\[a]"])
def test_cells_are_no_markup(name, capsys):
    terminal.print_table([name, "x"], [[name, "1"], ["exact", name]], f"title {name}")
    words = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert words == [["title", name], [name, "x"], [name, "1"], ["exact", name]]


def test_control_characters_are_shown(capsys):
    steering = "a\x1b[2J\x9bb\nc"
    terminal.print_table(["name"], [[steering]], steering)
    say(steering)
    note(steering)
    out, err = capsys.readouterr()
    shown = "a\\x1b[2J\\x9bb\\nc"
    assert [line.strip() for line in out.splitlines() if shown in line] == [shown] * 3
    assert err == shown + "\n"


class Screen:
    """A terminal of some width: one row a line, redrawn by carriage return and erasing."""

    def __init__(self, columns):
        self.columns, self.rows, self.wrapped = columns, [""], False

    def write(self, text):
        for part in re.split(r"(\x1b\[2K|\r|\n)", text):
            if part == "\n":
                self.rows.append("")
            elif part == "\x1b[2K":
                self.rows[-1] = ""
            elif part == "\r":
                self.column = 0
            elif part:
                assert "\x1b" not in part
                self.rows[-1] += part
                self.wrapped |= cell_len(self.rows[-1]) >= self.columns

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.fixture
def screen(monkeypatch):
    screen = Screen(60)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((screen.columns, 24)))
    monkeypatch.setattr(starting, "_drawn", False)
    return screen


def run(labels, windows=2, notes=(), to=None):
    with redirect_stderr(to or sys.stderr):
        shown = terminal.progress(windows, len(labels))
        for window in range(windows):
            for position, label in enumerate(labels):
                shown.on_pass(range(window, window + 1), position, label, 1.0)
                for said in notes:
                    shown.on_note(said)


def test_one_row_is_redrawn(screen):
    run(["exact", "a longer label", "int4"], to=screen)
    assert len(screen.rows) == 2
    assert re.fullmatch(r"window 2/2  int4  ppl 2\.718  took 0 s", screen.rows[0])
    assert screen.rows[1] == ""


@pytest.mark.parametrize("label", ["hadamard(clip(asym2:group_size=128):c=0.9)" * 3, "日本語" * 40, "\x1b[2J\n\r" * 9])
@pytest.mark.parametrize("columns", [60, 20, 5])
def test_long_labels_are_cut_to_the_terminal(screen, label, columns):
    screen.columns = columns
    run([label], to=screen)
    assert not screen.wrapped
    assert len(screen.rows) == 2
    if columns == 60:
        assert re.fullmatch(r"window 2/2  .+…  ppl 2\.718  took 0 s", screen.rows[0])


def test_a_note_takes_the_place_of_the_drawn_row(screen):
    run(["exact", "bad"], windows=1, notes=["bad failed, the others go on"], to=screen)
    assert screen.rows[0] == "bad failed, the others go on"
    assert re.fullmatch(r"window 1/1  bad  ppl 2\.718  took 0 s", screen.rows[1])
    assert screen.rows[2:] == ["bad failed, the others go on", ""]


def test_a_terminal_of_unknown_width(screen, monkeypatch):
    def unknown(descriptor):
        raise OSError

    screen.columns = 80
    monkeypatch.setattr(os, "get_terminal_size", unknown)
    run(["x" * 200], to=screen)
    assert not screen.wrapped
    assert cell_len(screen.rows[0]) == 79


def test_elsewhere_a_line_a_window(capsys):
    run(["exact", "int4"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["window 1/2", "window 2/2"]
    assert all("exact 2.718  int4 2.718" in line for line in lines)
