"""Figures of a grid, from rows made by hand."""

import math

import pytest

from kvdelta.analysis import plots
from kvdelta.analysis.reading.carry_rows import OrderRow
from kvdelta.analysis.reading.depths import DepthRow
from kvdelta.schemes import parse_scheme

CELLS = ["prose, two-pass", "code, two-pass"]
SPECS = ["int8", "int4", "kivi2"]


def order(losses, front=True, cells=CELLS, specs=SPECS, whisker=0.05):
    return [
        OrderRow(cell, spec, parse_scheme(spec).name, 4.0, x, x - whisker, x + whisker, 1, "", (), front)
        for spec, line in zip(specs, losses, strict=True)
        for cell, x in zip(cells, line, strict=True)
    ]


@pytest.fixture(autouse=True)
def styled():
    with plots.styled():
        yield


def test_a_line_a_scheme_with_its_losses():
    rows = order([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)])
    figure = plots.loss_by_cell(rows, "ΔNLL", "a title")
    axes = figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["prose\ntwo-pass", "code\ntwo-pass"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["int8", "int4", "kivi2"]


def test_what_may_be_below_0_is_drawn_there_and_a_kl_never_is():
    rows = order([(0.01, 0.2), (0.3, 0.4), (0.5, 0.6)])
    assert plots.loss_by_cell(rows, "ΔNLL", "").axes[0].get_yscale() == "symlog"
    assert plots.loss_by_cell(rows, "KL", "").axes[0].get_yscale() == "log"


def test_what_has_no_figures_in_a_cell_has_a_gap(tmp_path):
    rows = order([(0.1, math.nan), (0.3, 0.4), (0.5, 0.6)])
    plots.save(plots.loss_by_cell(rows, "ΔNLL", ""), tmp_path, "gap")
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_schemes_those_on_the_front_are_named():
    specs = [f"asym4:group_size={16 * (i + 1)}" for i in range(30)]
    rows = [row for i, spec in enumerate(specs) for row in order([(0.1 + i, 0.2 + i)], front=i < 2, specs=[spec])]
    figure = plots.loss_by_cell(rows, "ΔNLL", "")
    assert len(figure.legends[0].get_texts()) == 2
    assert len(figure.axes[0].lines) == 30


@pytest.mark.parametrize(("count", "rotation", "lines"), [(8, 0, 4), (11, 25, 1)])
def test_long_names_are_broken_and_those_of_many_cells_tilted(count, rotation, lines):
    cells = [f"a text with a long name {i}, two-pass" for i in range(count)]
    axes = plots.loss_by_cell(order([[0.1] * count], cells=cells, specs=["int4"]), "KL", "").axes[0]
    label = axes.get_xticklabels()[0]
    assert label.get_rotation() == rotation
    assert len(label.get_text().splitlines()) == lines


def test_kl_by_depth_has_a_panel_a_group_on_one_scale():
    rows = [
        [
            DepthRow(group, spec, parse_scheme(spec).name, prefix, kl * prefix, -1.0, 2 * kl * prefix)
            for prefix in (512, 1024, 16384)
        ]
        for group, kl in (("prose", 1e-4), ("code", 1e-3))
        for spec in SPECS
    ]
    figure = plots.kl_by_depth(rows, "")
    prose, code = figure.axes
    assert [text.get_text() for text in prose.get_xticklabels()] == ["512", "1K", "16K"]
    assert prose.get_ylim() == code.get_ylim()
    assert list(code.lines[0].get_ydata()) == pytest.approx([0.512, 1.024, 16.384])
    assert (prose.get_title(loc="left"), len(prose.lines)) == ("prose", 3)
