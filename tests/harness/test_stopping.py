"""A run that stops when it is known: which windows it visits, when it looks, and what its intervals are worth."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import DynamicCache

from kvdelta.analysis.reading import run_tables, summary
from kvdelta.harness import stopping
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.run import Settings
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Progress
from kvdelta.harness.statistics import clustered_mean, paired_delta
from kvdelta.harness.subject.windows import cut_windows

SPECS = ["asym2:group_size=16"]


def settings(windows, until_se=0.1):
    return Settings.model_construct(windows=[10 * i for i in range(windows)], until_se=until_se)


@pytest.fixture
def subject(subject, tokens):
    return replace(subject, windows=cut_windows(tokens, window_length=128, score_length=32, windows=24))


@pytest.fixture
def options(options):
    return replace(options, windows=24, batch="5", until_se=100.0)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 24, 63, 64, 100])
def test_every_prefix_of_the_visits_is_spread(count):
    order = stopping.visits(settings(count))
    assert sorted(order) == settings(count).windows
    for n in range(1, count + 1):
        edges = [-1, *sorted(place // 10 for place in order[:n]), count]
        assert max(np.diff(edges)) <= 2 * count / n + 1
        if n & (n - 1) == 0:
            assert edges[1:-1] == [i * count // n for i in range(n)]


def test_without_the_option_windows_come_in_order_and_nothing_is_looked_at():
    assert stopping.visits(settings(64, None)) == settings(64).windows
    assert stopping.looks(settings(64, None)) == [64]


@pytest.mark.parametrize(
    ("count", "looks"), [(8, [8]), (23, [23]), (24, [16, 24]), (64, [16, 32, 64]), (500, [16, 32, 64, 128, 256, 500])]
)
def test_looks_double(count, looks):
    assert stopping.looks(settings(count)) == looks


def test_it_stops_at_the_first_look_that_suffices(subject, options):
    notes = []
    run, folder = compare(SPECS, options, subject=subject, progress=Progress(on_note=notes.append))
    visited = stopping.visits(run.settings)
    assert [window.index for window in run.windows] == visited[:16]
    assert (run.status, run.settings.windows) == ("complete", [window.index for window in subject.windows])
    error, label = stopping.largest_error(run)
    assert run.ended == (
        "stopped after 16 of 24 windows: all standard errors of ΔNLL are under 100, the largest is "
        f"{error:.2g} (asym2:group_size=16)"
    )
    rows = summary.summarize(run)
    assert (error, label) == (pytest.approx(rows[1].delta_nll_se), rows[1].scheme)
    assert run.ended in notes
    lines = run_tables.heading(load_run(folder))
    assert run.ended in lines
    assert "looked after 16 and 24 windows, or until it stopped: intervals and p hold for all 2 looks" in lines[-2]
    assert "16 windows" in lines[1]
    assert f"windows begin {2 * 32} tokens apart" not in lines[-1]
    assert "windows begin 32 tokens apart" in lines[-1]


def test_its_figures_are_those_of_the_same_windows_and_its_interval_of_all_looks(subject, options):
    run, _ = compare(SPECS, options, subject=subject)
    plain, _ = compare(SPECS, replace(options, until_se=None, batch="1", out=f"{options.out}-plain"), subject=subject)
    losses = {window.index: window.nll for window in plain.windows}
    for window in run.windows:
        assert window.nll == pytest.approx(losses[window.index], rel=1e-6)
    row = summary.summarize(run)[1]
    once = paired_delta([w.nll[1] for w in run.windows], [w.nll[0] for w in run.windows], [31] * 16)
    both = paired_delta([w.nll[1] for w in run.windows], [w.nll[0] for w in run.windows], [31] * 16, looks=2)
    assert (row.delta_nll_low, row.p, row.p_sign_flip) == (both.low, both.p, both.p_sign_flip)
    assert both.low < once.low < once.high < both.high
    assert both.p_sign_flip == min(1.0, 2 * once.p_sign_flip)
    assert both.p == min(1.0, 2 * once.p)
    largest = max(route["rms"] for route in run.noise_floor.routes.values())
    assert run.noise_floor.delta_nll == pytest.approx(largest / (16 * 31) ** 0.5)


def test_an_error_that_is_not_reached_takes_all_windows_and_says_so(subject, options):
    run, _ = compare(SPECS, replace(options, until_se=1e-9), subject=subject)
    assert len(run.windows) == 24
    assert run.ended.startswith("all 24 windows are scored, and not all standard errors of ΔNLL are under 1e-09")


class Rounding(DynamicCache):
    def update(self, keys, values, layer, *args, **kwargs):
        return super().update(keys.half().float(), values, layer, *args, **kwargs)


def raising(config):
    raise RuntimeError("never")


def test_rows_that_failed_and_lossless_ones_hold_nothing_up(subject, options):
    broken = ForeignContender("broken", raising)
    run, _ = compare([broken], replace(options, until_se=1e-9), subject=subject)
    assert (run.contenders[1].error, len(run.windows)) == ("RuntimeError: never", 16)
    assert "there is none to wait for" in run.ended


def test_a_continued_run_goes_on_under_the_same_rule(subject, options):
    class Stop(Exception):
        pass

    def stop(windows, contender, label, nll):
        if windows.start == 10:
            raise Stop

    whole, _ = compare(SPECS, options, subject=subject)
    options = replace(options, out=f"{options.out}-stopped")
    with pytest.raises(Stop):
        compare(SPECS, options, subject=subject, progress=Progress(stop))
    assert len(load_run(options.out).windows) == 10
    run, _ = compare(SPECS, options, subject=subject)
    assert run == whole
    again, _ = compare(SPECS, options, subject=subject, progress=Progress(stop))
    assert again == whole
    with pytest.raises(ValueError, match="differs in until_se"):
        compare(SPECS, replace(options, until_se=1.0), subject=subject)


def test_a_look_that_a_run_is_past_is_not_repeated(subject, options):
    """Else the only row, which failed since, would let it stop where it had gone on."""
    seen, made = [], []

    def tiring(config):
        made.append(config)
        if len(made) > 18:
            raise RuntimeError("enough")
        return Rounding(config=config)

    class Stop(Exception):
        pass

    def stop(windows, contender, label, nll):
        if windows.start == 21:
            raise Stop

    strict, row = replace(options, until_se=1e-9), ForeignContender("tiring", tiring)
    with pytest.raises(Stop):
        compare([row], strict, subject=subject, progress=Progress(stop))
    left = load_run(options.out)
    assert (len(left.windows), left.contenders[1].error) == (21, "RuntimeError: enough")
    run, _ = compare([row], strict, subject=subject, progress=Progress(lambda windows, *_: seen.append(windows.start)))
    assert (set(seen), len(run.windows)) == ({21}, 24)


@pytest.mark.parametrize("until_se", [0.0, -1.0, float("inf"), float("nan")])
def test_an_error_that_cannot_be_reached_is_refused(options, until_se, refused):
    with refused("give a standard error above 0"):
        replace(options, until_se=until_se)


def test_windows_that_share_scored_tokens_have_no_error_to_wait_for(subject, options, tokens, refused):
    windows = cut_windows(tokens, window_length=128, score_length=32, stride=16, windows=40)
    with refused("take a stride of 31 or more"):
        compare(SPECS, replace(options, stride=16), subject=replace(subject, windows=windows))


RUNS, WINDOWS = 2000, 64
KINDS = {
    "t with 3 degrees of freedom": (lambda rng, shape: rng.standard_t(3, shape), 0.0, 3**0.5),
    "lognormal, σ = 0.5": (lambda rng, shape: rng.lognormal(0, 0.5, shape), np.exp(0.125), 0.604),
}


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_stopped_runs_cover_what_they_say(kind):
    """Of 2,000 runs that stop when their error is that of 24 windows. Without the correction fewer of the skewed ones do."""
    draw, mean, sd = KINDS[kind]
    differences = draw(np.random.default_rng(0), (RUNS, WINDOWS))
    at = stopping.looks(settings(WINDOWS))
    covered = {1: 0, len(at): 0}
    stopped = []
    for run in differences:
        n = next((n for n in at if clustered_mean(run[:n], [1] * n)[1] < sd / 24**0.5), WINDOWS)
        stopped.append(n)
        for looks in covered:
            found = paired_delta(run[:n], [0.0] * n, [1] * n, looks=looks)
            covered[looks] += found.low <= mean <= found.high
    assert len(set(stopped)) == 3
    assert covered[len(at)] / RUNS >= 0.94
    assert covered[1] < covered[len(at)]
    if "lognormal" in kind:
        assert covered[1] / RUNS < 0.94
