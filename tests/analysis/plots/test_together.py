"""Figures drawn in several processes are those drawn in one, in their order."""

import os
from pathlib import Path

import pytest

from kvdelta.analysis.plots import canvas, together
from kvdelta.analysis.plots.together import draw_together
from kvdelta.schemes.errors import UserError


def files_of(job):
    if job < 0:
        raise UserError(f"job {job}")
    return [Path(f"{job}.svg"), Path(f"{os.getpid()}")]


def test_the_order_is_that_of_the_jobs_in_processes_and_without(monkeypatch):
    for cores, elsewhere in ((1, False), (2, True)):
        monkeypatch.setattr(together, "cores", lambda cores=cores: cores)
        paths = list(draw_together(files_of, range(6)))
        assert paths[::2] == [Path(f"{job}.svg") for job in range(6)]
        assert (Path(f"{os.getpid()}") not in paths) == elsewhere


def test_what_a_process_raises_is_raised_here(monkeypatch):
    monkeypatch.setattr(together, "cores", lambda: 2)
    with pytest.raises(UserError, match="job -1"):
        list(draw_together(files_of, [0, 1, -1, 2]))


def test_a_figure_is_laid_out_and_drawn_once_a_file(tmp_path, monkeypatch):
    with canvas.styled():
        figure, _ = canvas.grid_figure("a title", 1, 2, 2.0)
        drawn = []
        draw = figure.draw
        monkeypatch.setattr(figure, "draw", lambda renderer: drawn.append(renderer) or draw(renderer))
        canvas.settle(figure)
        assert not drawn
        canvas.save(figure, tmp_path, "figure")
    assert len(drawn) == 2
