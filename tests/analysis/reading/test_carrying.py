"""What carries from cell to cell, against orders and regrets that a hand can compute."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from kvdelta.analysis.reading import carry_tables, depths
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import gather_cells
from kvdelta.analysis.reading.draws import DRAWS, interval_of, kendall, signs
from kvdelta.analysis.reading.grids import grid_of
from kvdelta.harness import statistics
from kvdelta.harness.records.hashes import hashed
from kvdelta.harness.records.run import NoiseFloor
from kvdelta.harness.records.run_folder import save_run
from kvdelta.harness.records.sweep import CellRecord, Sweep, save_sweep
from kvdelta.schemes.errors import UserError

from ..conftest import TOKENS

LOSSES = {  # nats a token of int8, int4, kivi2 (8.25, 4.25 and 4 bits), by text
    "prose": (0.01, 0.10, 0.30),
    "code": (0.02, 0.25, 0.20),
}


@pytest.fixture
def cell(run, tmp_path):
    """Saves a run as a cell: its losses a window are those given, and a little that differs by window and not by scheme."""

    def save(name, losses, windows=4, apart=0.0, **settings):
        one = run.model_copy(deep=True)
        one.text_name, one.settings.text_sha256 = name, name
        one.contenders[3].bytes = {"key": run.contenders[3].bytes["key"].model_copy(update={"counted": 50.0})}
        template = one.windows[0]
        one.windows = []
        for w in range(windows):
            own = [0.0, *(x + apart * (-1) ** (w + s) for s, x in enumerate(losses))]
            one.windows.append(
                template.model_copy(
                    update={
                        "index": w,
                        "start": 40 * w,
                        "nll": [TOKENS * (2 + 0.1 * w + x) for x in own],
                        "kl": [TOKENS * abs(x) for x in own],
                    }
                )
            )
        one.settings.windows = list(range(windows))
        one.noise_floor = None
        for key, value in settings.items():
            setattr(one.settings, key, value)
        folder = tmp_path / name
        save_run(one, folder)
        return folder

    return save


def drop_int8(folder):
    content = json.loads((folder / "run.json").read_text())
    del content["contenders"][1]
    for window in content["windows"]:
        for name in ("nll", "kl", "top1", "probability", "key_pairs", "value_pairs", "pairs"):
            del window[name][1]
    (folder / "run.json").write_text(json.dumps(hashed(content)))


@pytest.fixture
def carried(cell):
    folders = [cell(name, losses) for name, losses in LOSSES.items()]
    return Carried(grid_of(gather_cells(folders)[0]))


def test_the_least_worst_loss_is_chosen_and_regretted(carried):
    """At 4 bits there is kivi2 alone; at 4.25 int4's worst loss, 0.25, is less than kivi2's 0.30, and in code 0.05 more than its."""
    two, four, eight = carried.regret()
    assert (two.scheme, two.loss, two.loss_cell, two.regret) == ("kivi2", pytest.approx(0.30), "prose", 0.0)
    assert (four.scheme, four.budget, four.candidates) == ("int4", 4.25, 2)
    assert (four.loss, four.loss_cell) == (pytest.approx(0.25), "code")
    assert (four.regret, four.regret_cell) == (pytest.approx(0.05), "code")
    assert (four.loss_low, four.loss_high) == pytest.approx((0.25, 0.25))  # windows do not differ
    assert four.no_difference == ()
    assert (eight.scheme, eight.loss, eight.regret) == ("int8", pytest.approx(0.02), 0.0)


def test_a_budget_is_kept_in_every_cell_or_has_no_row(carried):
    assert [row.scheme for row in carried.regret([4.2, 3.9, 16])] == ["kivi2", "int8"]
    grid = carried.grid
    said = carry_tables.notes(grid, carried, [3.9], carried.regret([3.9]))
    assert said[-1] == "no scheme with figures in every cell keeps 3.9 bits in all of them"
    grid.bits[1, 1] = 9.0  # int4, in code
    assert [row.scheme for row in Carried(grid).regret([4.25])] == ["kivi2"]


def test_a_runner_up_within_the_interval_is_no_difference(cell):
    folders = [cell("prose", (0.01, 0.10, 0.101), apart=0.05), cell("code", (0.01, 0.10, 0.101), apart=0.05)]
    row = Carried(grid_of(gather_cells(folders)[0])).regret([5])[0]
    assert (row.scheme, row.no_difference) == ("int4", ("kivi2",))
    assert row.loss_low < 0.10 < row.loss_high


def test_a_difference_within_the_noise_floor_is_none(carried):
    for one in carried.grid.cells:
        one.run.noise_floor = NoiseFloor(delta_nll=0.06, kl=0.0, routes={})
    four = Carried(carried.grid).regret([4.25])[0]
    assert four.no_difference == ("kivi2",)
    assert Carried(carried.grid).fails == []


def test_the_order_and_the_front(carried):
    rows = {(row.scheme, row.cell): row for row in carried.order}
    assert [rows[name, "code"].rank for name in ("int8", "int4", "kivi2")] == [1, 3, 2]
    assert rows["int4", "code"].beaten_by == ("kivi2",)
    assert rows["int4", "prose"].beaten_by == ()
    assert [rows[name, "prose"].front for name in ("int8", "int4", "kivi2")] == [True, False, True]
    header, body = carry_tables.order_table(carried.grid, carried.order)
    assert header == ["scheme", "bits", "prose", "code", "beaten by"]
    assert [line[0] for line in body] == ["int8", "int4", "kivi2"]  # by worst loss
    assert body[1] == ["int4", "4.25", "+0.1000  (2)", "+0.2500  (3)", "kivi2 in code"]


def test_who_beats_a_scheme_is_said_with_the_cells_where_that_one_does(carried):
    rows = [row for row in carried.order if row.scheme == "int4"]

    def said(*beaten):
        line = [replace(row, beaten_by=by, front=not any(beaten)) for row, by in zip(rows, beaten, strict=True)]
        return carry_tables.order_table(carried.grid, line)[1][0][-1]

    assert said(("kivi2",), ("int8",)) == "kivi2 in prose; int8 in code"
    assert said(("kivi2", "int8"), ("int8",)) == "int8 in all"
    assert said((), ()) == "nobody"


def test_a_scheme_that_is_overtaken_fails_where_it_is(carried):
    (row,) = carried.fails
    assert (row.scheme, row.cell, row.beaten_by, row.elsewhere) == ("int4", "code", "kivi2", "prose")
    assert row.why == ("loses 0.2500 at 4.25 bits where kivi2 loses 0.2000 at 4.00, and in prose 0.1000 against 0.3000")


def test_rank_agreement_is_kendalls_tau_b(carried):
    (row,) = carried.agreement
    assert row.tau == pytest.approx(stats.kendalltau(*LOSSES.values()).statistic)
    assert (row.tau_low, row.tau_high) == pytest.approx((row.tau, row.tau))
    assert (row.told, row.reversed, row.paired) == (3, 1, False)


@pytest.mark.parametrize("seed", range(5))
def test_tau_of_many_draws_is_scipys_of_each(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, size=(2, 6, 7)).astype(float)
    ours = kendall(signs(x), signs(y))
    assert ours == pytest.approx([stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_cells_with_the_same_windows_are_drawn_together(cell):
    """A prefix that is longer leaves the scored tokens where they are: then the draws of both are of the same windows."""
    shallow, deep = cell("a", (0.1, 0.2, 0.3), apart=0.05), cell("b", (0.1, 0.2, 0.3), apart=0.05)
    for folder, prefix in ((shallow, 9), (deep, 29)):
        content = json.loads((folder / "run.json").read_text())
        content["text_name"], content["settings"]["text_sha256"] = "a", "a"
        content["settings"]["window_length"], content["settings"]["score_length"] = prefix + 11, 11
        for window in content["windows"]:
            window["start"] += 29 - prefix
        (folder / "run.json").write_text(json.dumps(hashed(content)))
    grid = grid_of(gather_cells([shallow, deep])[0])
    carried = Carried(grid)
    assert carried.agreement[0].paired
    assert (carried.draws[0] == carried.draws[1]).all()
    assert [one.name for one in grid.cells] == ["prefix 9", "prefix 29"]
    line = depths.depth_rows(grid)[0]
    assert ([row.prefix for row in line], line[1].times) == ([9, 29], pytest.approx(1))
    (title,) = depths.depth_tables(depths.depth_rows(grid))
    assert title == "KL by depth, the same scored tokens"


def test_draws_of_other_windows_are_independent_and_as_wide_as_a_t_interval(cell):
    rng = np.random.default_rng(3)
    folders = [cell(name, (0.1, 0.2, 0.3), windows=8) for name in ("a", "b")]
    grid = grid_of(gather_cells(folders)[0])
    grid.losses[:] = [rng.normal(0.1, 0.02, (3, 8)) for _ in grid.losses]
    carried = Carried(grid)
    assert abs(np.corrcoef(carried.draws[0][:, 0], carried.draws[1][:, 0])[0, 1]) < 4 / math.sqrt(DRAWS)
    for losses, drawn in zip(grid.losses, carried.draws, strict=True):
        for s in range(3):
            paired = statistics.paired_delta(losses[s], [0.0] * 8, [1] * 8)
            low, high = interval_of(drawn[:, s])
            assert high - low == pytest.approx(paired.high - paired.low, rel=0.15)


def test_pairs_are_told_apart_as_paired_delta_tells_them(cell):
    rng = np.random.default_rng(1)
    grid = grid_of(gather_cells([cell("a", (0.1, 0.2, 0.3)), cell("b", (0.1, 0.2, 0.3))])[0])
    grid.losses[:] = [rng.normal([[0.1], [0.12], [0.13]], 0.01, (3, 4)) for _ in grid.losses]
    carried = Carried(grid)
    for losses, order in zip(grid.losses, carried.told, strict=True):
        for i, j in itertools.combinations(range(3), 2):
            paired = statistics.paired_delta(losses[i], losses[j], [1] * 4)
            assert order[i, j] == -order[j, i] == (paired.low > 0) - (paired.high < 0)


def test_one_window_orders_and_has_no_interval(cell):
    carried = Carried(grid_of(gather_cells([cell(name, x, windows=1) for name, x in LOSSES.items()])[0]))
    assert math.isnan(carried.agreement[0].tau_low)
    assert carried.agreement[0].told == 0
    row = carried.regret([4.25])[0]
    assert (row.scheme, row.no_difference, math.isnan(row.loss_low)) == ("int4", ("kivi2",), True)
    assert "in every cell: what these have a part in has no interval" in carry_tables.heading(carried.grid)[-1]


def test_by_kl(cell):
    grid = grid_of(gather_cells([cell("a", (-0.1, 0.2, 0.3)), cell("b", (0.1, 0.2, 0.3))])[0], by="kl")
    assert grid.means[0] == pytest.approx([0.1, 0.2, 0.3])


def test_a_scheme_calibrated_on_each_model_is_one_scheme(cell):
    def calibrated(name, model, digest):
        folder = cell(name, LOSSES[name])
        content = json.loads((folder / "run.json").read_text())
        content["settings"]["model"]["id"] = model
        content["contenders"][1]["name"] = f"kvquant:bits=4,calibration=file#{digest}"
        (folder / "run.json").write_text(json.dumps(hashed(content)))
        return folder

    one, other = calibrated("prose", "one", "11111111"), calibrated("code", "other", "22222222")
    assert grid_of(gather_cells([one, other])[0]).names[0] == "kvquant:bits=4"
    again = calibrated("code", "one", "22222222")
    with pytest.raises(UserError, match="lacks int8"):  # two calibrations of one model are two schemes
        grid_of(gather_cells([one, again])[0])


def test_a_scheme_that_failed_somewhere_is_named_and_never_chosen(cell):
    folders = [cell(name, losses) for name, losses in LOSSES.items()]
    content = json.loads((folders[1] / "run.json").read_text())
    content["contenders"][1]["error"] = "it fell over"
    (folders[1] / "run.json").write_text(json.dumps(hashed(content)))
    carried = Carried(grid_of(gather_cells(folders)[0]))
    assert (carried.fails[0].scheme, carried.fails[0].cell, carried.fails[0].why) == ("int8", "code", "it fell over")
    assert [row.scheme for row in carried.regret([16])] == ["int4"]
    assert carried.agreement[0].schemes == 2
    _, body = carry_tables.order_table(carried.grid, carried.order)
    assert body[-1] == ["int8", "8.25", "+0.0100  (1)", "–", "–"]


class TestCellsThatDoNotCompare:
    def test_one_is_no_grid(self, cell, refused):
        with refused("1 complete run of a grid of two or more: .*the folder of a sweep; kvdelta show"):
            grid_of(gather_cells([cell("a", (0.1, 0.2, 0.3))])[0])

    def test_schemes_that_a_cell_lacks(self, cell, refused):
        folders = [cell(name, losses) for name, losses in LOSSES.items()]
        drop_int8(folders[1])
        cells, _ = gather_cells(folders)
        with refused(
            "code lacks int8, which other cells have; score the same schemes .*--common for the 2 that all have"
        ):
            grid_of(cells)
        assert grid_of(cells, common=True).labels == ["int4", "kivi2"]

    def test_a_sweep_says_why_one_is_missing(self, cell, tmp_path):
        folders = [cell(f"sweep/{name}/two-pass", losses) for name, losses in LOSSES.items()]
        drop_int8(folders[1])
        sweep = Sweep(command="kvdelta sweep")
        refused = {"symmetric:bits=8": "heads of 40 channels"}
        for name in LOSSES:
            sweep.put(
                CellRecord(folder=name, model="m", text=name, prefix=29, suffix=11, status="complete", refused=refused)
            )
        sweep.put(
            CellRecord(folder="big", model="big", text="code", prefix=29, suffix=11, status="failed", error="no room")
        )
        sweep.cells[0].refused = {}
        save_sweep(sweep, tmp_path / "sweep")
        cells, failed = gather_cells([tmp_path / "sweep"])
        carried = Carried(grid_of(cells, failed=failed))
        assert carried.fails[0].why == "heads of 40 channels"
        assert "no record of big: no room" in carry_tables.heading(carried.grid)

    def test_another_baseline(self, cell, refused):
        folders = [cell(name, losses) for name, losses in LOSSES.items()]
        content = json.loads((folders[0] / "run.json").read_text())
        content["contenders"][0] |= {"label": "int8", "name": "symmetric:bits=8", "lossless": False}
        (folders[0] / "run.json").write_text(json.dumps(hashed(content)))
        with refused("prose has int8 as its baseline where the others have exact; score it again"):
            grid_of(gather_cells(folders)[0])

    def test_other_measures(self, cell, refused):
        folders = [cell("prose", LOSSES["prose"], measures=1), cell("code", LOSSES["code"], measures=2)]
        with refused(
            r"the measures changed .*\(version 1 in .*prose; 2 in .*code\); make the older again .*: kvdelta compare"
        ):
            grid_of(gather_cells(folders)[0])

    def test_a_single_pass(self, cell, refused):
        folders = [cell("prose", LOSSES["prose"], protocol="single-pass"), cell("code", LOSSES["code"])]
        with refused("prose is by a single pass, which reads no cache"):
            grid_of(gather_cells(folders)[0])

    def test_one_cell_twice(self, cell, refused):
        folder = cell("prose", LOSSES["prose"])
        with refused("so they are one cell; leave one of them out"):
            grid_of(gather_cells([folder, folder])[0])

    def test_what_is_not_complete_is_left_out_and_said(self, cell):
        folders = [cell(name, losses) for name, losses in LOSSES.items()]
        content = json.loads((folders[0] / "run.json").read_text())
        (folders[0] / "run.json").write_text(json.dumps(hashed({**content, "status": "running"})))
        said = []
        cells, _ = gather_cells(folders, said.append)
        assert len(cells) == 1
        assert (
            "prose is left out: it is not complete (4 of 4 windows); give its command again: kvdelta compare" in said[0]
        )
