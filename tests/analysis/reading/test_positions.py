"""KL by position in the suffix, from the tokens of a run."""

import math
from pathlib import Path

import pytest

from kvdelta.analysis.pages.page import make_page
from kvdelta.analysis.reading.positions import suffix_rows
from kvdelta.analysis.reading.summary import summarize
from kvdelta.harness.records.run_folder import load_run


def test_bins_join_to_the_mean_of_the_run(folders):
    folder = Path(folders["run"])
    run = load_run(folder)
    whole = {row.scheme: row.kl for row in summarize(run)}
    rows = suffix_rows(run, folder, bins=4)
    by_scheme = {scheme: [row for row in rows if row.scheme == scheme] for scheme in {row.scheme for row in rows}}
    assert by_scheme.keys() == whole.keys() - {"exact"}
    for scheme, own in by_scheme.items():
        counts = [row.last - row.first + 1 for row in own]
        assert [row.first for row in own] == [1, *(row.last + 1 for row in own[:-1])]
        assert sum(counts) == run.windows[0].count
        mean = sum(row.kl * count for row, count in zip(own, counts, strict=True)) / sum(counts)
        assert mean == pytest.approx(whole[scheme], rel=1e-6)
        assert all(row.kl_low < row.kl < row.kl_high for row in own)


def test_windows_that_share_tokens_give_no_interval(folders):
    run = load_run(folders["run"])
    run.settings = run.settings.model_copy(update={"stride": 1})
    assert all(math.isnan(row.kl_low) for row in suffix_rows(run, Path(folders["run"])))


def test_a_run_that_kept_its_tokens_is_drawn_by_position(folders):
    page = make_page([Path(folders["run"]), Path(folders["errors"]), Path(folders["ablation"])], "kvdelta report")
    assert b"position in the suffix" in page
    assert b"Errors by layer, and what a layer costs" in page
