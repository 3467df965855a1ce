"""A grid of comparisons: cells that fail are named and the others go on; the same command goes on where it stopped."""

from dataclasses import replace

import pytest
import torch

from kvdelta.harness import sweeping
from kvdelta.harness.axes import Axes
from kvdelta.harness.comparison import compare
from kvdelta.harness.options import Options
from kvdelta.harness.records.run_folder import load_run, run_folders
from kvdelta.harness.records.sweep import cell_folders, load_sweep
from kvdelta.harness.subject.model import load_model
from kvdelta.harness.sweeping import sweep

SPECS = ["int4:group_size=16", "asym2:group_size=16"]


@pytest.fixture
def options(files, tmp_path):
    return Options(
        model=str(files / "model"),
        text=str(files / "text.txt"),
        window_length=64,
        score_length=16,
        windows=2,
        device="cpu",
        out=str(tmp_path / "sweep"),
    )


@pytest.fixture
def axes(files):
    def axes(**changes):
        return Axes(**{"models": [str(files / "model")], "texts": [str(files / "text.txt")]} | changes)

    return axes


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded, one after another."""
    seen = []

    def load(options):
        seen.append(options.model)
        return load_model(options.model)

    monkeypatch.setattr(sweeping, "load_named", load)
    return seen


def test_a_cell_has_the_record_of_a_comparison(options, axes, loads, tmp_path):
    cells, runs, folder = sweep(SPECS, options, axes(window_lengths=[48, 64], protocols=["two-pass", "stepwise"], steps=[8]))  # fmt: skip
    assert len(loads) == 1
    assert [cell.folder for cell in cells] == ["model_text_32+16", "model_text_48+16"]
    assert [cell.status for cell in cells] == ["complete"] * 2
    places = [place.relative_to(folder).as_posix() for _, place in runs]
    assert places == [f"{cell.folder}/{way}" for cell in cells for way in ("two-pass", "stepwise-8")]
    alone, _ = compare(SPECS, replace(options, window_length=48, stride=16, out=str(tmp_path / "alone")))
    assert [window.nll for window in runs[0][0].windows] == [window.nll for window in alone.windows]
    assert runs[0][0].settings == alone.settings
    assert run_folders(folder) == cell_folders(folder) == [place for _, place in runs]


def test_depths_score_the_same_tokens(options, axes):
    _, runs, _ = sweep(SPECS, options, axes(depths=[16, 80, 32]))
    assert [(run.settings.window_length, run.settings.offset) for run, _ in runs] == [(32, 64), (96, 0), (48, 48)]
    starts = [[w.start + run.settings.window_length - 16 for w in run.windows] for run, _ in runs]
    assert starts[0] == starts[1] == starts[2]
    exact = [run.windows[0].nll[0] for run, _ in runs]
    assert len(set(exact)) == 3  # each has its own exact


def test_a_sweep_goes_on_where_it_stopped(options, axes, loads):
    def score(contenders, ways, subject):
        if ways[0].window_length == 64:
            raise KeyboardInterrupt
        return sweeping._compare(contenders, ways, subject)

    with pytest.raises(KeyboardInterrupt):
        sweep(SPECS, options, axes(window_lengths=[48, 64]), score)
    assert [cell.status for cell in load_sweep(sweeping.Path(options.out)).cells] == ["complete", "left"]
    before = load_run(sweeping.Path(options.out) / "model_text_32+16" / "two-pass")
    cells, runs, _ = sweep(SPECS, options, axes(window_lengths=[48, 64]))
    assert [cell.status for cell in cells] == ["complete"] * 2
    assert runs[0][0] == before


def test_more_cells_join_those_of_before(options, axes):
    sweep(SPECS, options, axes(window_lengths=[48]))
    _, _, folder = sweep(SPECS, options, axes(window_lengths=[64]))
    assert [cell.prefix for cell in load_sweep(folder).cells] == [32, 48]


def test_other_settings_do_not_mix(options, axes, refused):
    sweep(SPECS, options, axes())
    with refused(r"model_text_48\+16/two-pass holds another run \(it differs in contenders\)"):
        sweep(SPECS[:1], options, axes())
    assert load_sweep(sweeping.Path(options.out)).cells[0].status == "complete"


def test_a_cell_that_fails_is_named_and_the_others_go_on(options, axes, files, loads, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    said = []
    grid = axes(models=["./gone", str(files / "model")], texts=[str(tmp_path / "short.txt"), str(files / "text.txt")])
    cells, runs, _ = sweep(SPECS, options, grid, on_note=said.append)
    assert [cell.status for cell in cells] == ["failed", "failed", "failed", "complete"]
    assert loads == ["./gone", str(files / "model")]  # not tried again for the second text
    assert "does not exist" in cells[1].error
    assert cells[2].error.startswith("the text has 3 tokens")
    assert any(line.startswith("model_short_48+16 failed, the others go on: the text has 3 tokens") for line in said)
    assert len(runs) == 1
    assert (cells[2].model, cells[2].text) == ("model", "short.txt")  # no path of this machine


def no_room():
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("allocate", [no_room, lambda: torch.empty(2**50)])
def test_no_memory_ends_a_cell_and_not_the_sweep(options, axes, allocate):
    def score(contenders, ways, subject):
        if ways[0].window_length == 64:
            allocate()
        return sweeping._compare(contenders, ways, subject)

    cells, _, _ = sweep(SPECS, options, axes(window_lengths=[64, 48]), score)
    assert [(cell.status, cell.error) for cell in cells] == [
        ("failed", "no memory left on the device"),
        ("complete", None),
    ]


def test_a_scheme_that_does_not_fit_is_left_out_with_its_reason(options, axes):
    cells, runs, _ = sweep([*SPECS, "kivi:bits=2,residual_length=64,group_size=16"], options, axes())
    ((name, why),) = cells[0].refused.items()
    assert name.startswith("kivi:bits=2")
    assert "would leave every key exact" in why
    assert [one.label for one in runs[0][0].contenders] == ["exact", *SPECS]


def test_a_grid_of_failures_is_an_error(options, axes, refused):
    with refused("no cell could be scored; the first: .*does not exist"):
        sweep(SPECS, options, axes(models=["./gone"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [16], "window_lengths": [64]}, "give --depths or --window-length"),
        ({"depths": [0, 16]}, "a prefix has 1 token or more"),
        ({"texts": ["a/text.txt", "b/text.txt"]}, "two cells would lie in the folder"),
    ],
)
def test_refused(changes, message, options, axes, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("w1")
    with refused(message):
        axes(**changes).cells(options)


def test_a_folder_of_something_else_is_left_alone(options, axes, refused, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.txt").write_text("all of it")
    with refused("is not empty and holds no sweep; choose another folder with --out"):
        sweep(SPECS, options, axes())


def test_without_out_the_same_command_finds_its_folder(options, axes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unnamed = replace(options, out=None)
    folders = [sweep(SPECS, replace(unnamed, command=c), axes())[2] for c in ("once", "twice")]
    assert folders[0] == folders[1]
    assert folders[0].parent.name == "runs"
    assert sweep(SPECS[:1], unnamed, axes())[2] != folders[0]
