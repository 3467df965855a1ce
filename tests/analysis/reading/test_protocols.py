"""What decoding costs beside two passes, against what a hand can compute."""

import math

import pytest
from scipy import stats

from kvdelta.analysis.reading import protocol_tables, protocols
from kvdelta.harness.records.run import NoiseFloor
from kvdelta.schemes.errors import UserError


@pytest.fixture
def runs(run):
    """Two passes, and stepwise: int4 loses three times as much, so that it falls behind kivi2, which loses the same."""
    other = run.model_copy(deep=True)
    other.settings.protocol, other.settings.step = "stepwise", 16
    for i, (window, step) in enumerate(zip(run.windows, other.windows, strict=True)):
        more = (9.0, 10.0, 11.0)[i]
        for one, losses in ((window, (0, 1, more, 2 * more)), (step, (0, 1, 3 * more, 2 * more))):
            one.nll = [100 + x for x in losses]
            one.kl = [x / 10 for x in losses]
    return [run, other]


def test_times_are_a_ratio_of_means_over_windows(runs):
    runs[1].windows[0].kl[2] = 3.3
    _, int4, kivi2 = protocols.protocol_rows(runs)
    few, many = (sum(window.kl[2] for window in run.windows) for run in runs)
    ratio = many / few
    rest = [b.kl[2] - ratio * a.kl[2] for a, b in zip(runs[0].windows, runs[1].windows, strict=True)]
    half = stats.t.ppf(0.975, 2) * stats.sem(rest) / (few / 3)
    assert int4[1].kl_times == pytest.approx(ratio)
    assert int4[1].kl_times_high == pytest.approx(ratio * math.exp(half / ratio))
    assert (int4[1].times, int4[1].times_low) == pytest.approx((3, 3))
    assert (kivi2[1].times, kivi2[0].times) == (pytest.approx(1), None)


def test_rows_whose_order_changes_are_named(runs):
    _, int4, kivi2 = protocols.protocol_rows(runs)
    assert (int4[1].reversed, kivi2[1].reversed, int4[0].reversed) == (("kivi2",), ("int4",), ())
    (said,) = protocol_tables.order_notes(protocols.protocol_rows(runs))
    assert "int4 loses less than kivi2 by two-pass" in said
    assert "more by stepwise (step 16)" in said
    header, body = protocol_tables.protocol_tables([int4, kivi2])[0]
    assert header == ["scheme", "bits", "ΔNLL two-pass", "ΔNLL step 16", "times"]
    assert [line[0] for line in body] == ["int4 ⇅", "kivi2 ⇅"]


def test_an_order_that_the_windows_do_not_tell_is_no_order(runs):
    for i, window in enumerate(runs[1].windows):
        window.nll[2] = window.nll[3] + (-5, 6, 0)[i]
    assert not any(row.reversed for line in protocols.protocol_rows(runs) for row in line)


@pytest.mark.parametrize(
    "names",
    [
        ("{}", "matched({}):tail=128"),
        ("matched({}):sinks=4", "matched({}):tail=128,sinks=4,block=128"),
        ("matched({}):tail=128,sinks=4",) * 2,
    ],
)
def test_rows_of_other_exact_tokens_have_no_order(runs, names):
    for run in runs:
        for contender, form in zip(run.contenders[2:], names, strict=True):
            contender.name = form.format(contender.name)
    assert not any(row.reversed for line in protocols.protocol_rows(runs) for row in line)
    for run in runs:
        for contender in run.contenders[2:]:
            contender.name = "matched(hadamard(asymmetric:bits=4)):tail=128,sinks=4,block=128"
    assert protocols.protocol_rows(runs)[1][1].reversed == ("kivi2",)


def test_agreement_and_the_tail_of_kl_stand_in_a_table(runs):
    for run, share, tail in zip(runs, (0.04, 0.1), (0.25, 1.5), strict=True):
        run.contenders[2].kl_999 = tail
        for window in run.windows:
            window.tvd = [0.0, 0.0, share * window.count, 0.0]
    _, int4, kivi2 = found = protocols.protocol_rows(runs)
    assert [(row.same, row.kl_999) for row in int4] == [(pytest.approx(96), 0.25), (pytest.approx(90), 1.5)]
    assert kivi2[0].kl_999 is None
    header, body = protocol_tables.protocol_tables(found)[2]
    assert header == ["scheme", "bits", "same % two-pass", "same % step 16", "99.9 % two-pass", "99.9 % step 16"]
    assert body[1][2:] == ["96.0", "90.0", "0.25", "1.5"]
    assert body[2][2:] == ["100.0", "100.0", "–", "–"]
    runs[1].windows[0].tvd = []  # an older record
    assert protocol_tables.protocol_tables(protocols.protocol_rows(runs))[2][1][1][2:4] == ["96.0", "–"]


def test_what_costs_nothing_has_no_times(runs):
    for i, window in enumerate(runs[0].windows):
        window.nll[2] = 100 + (-1, 1, 0)[i]
    row = protocols.protocol_rows(runs)[1][1]
    assert row.times is None
    assert row.kl_times is not None
    assert protocol_tables.protocol_tables([[row, row]])[0][1][0][-1] == "–"


def test_windows_that_score_tokens_twice_have_no_interval_and_no_order(runs):
    for run in runs:
        run.settings.stride = 5  # each scores 10
    row = protocols.protocol_rows(runs)[1][1]
    assert (row.times, row.reversed) == (None, ())
    assert math.isnan(row.kl_times_low)
    assert row.kl_times == pytest.approx(3)


def test_a_kl_within_the_noise_floor_has_no_times(runs):
    runs[0].noise_floor = NoiseFloor(delta_nll=0.0, kl=0.11, routes={})
    _, int4, kivi2 = protocols.protocol_rows(runs)
    assert int4[1].kl_times is None
    assert kivi2[1].kl_times == pytest.approx(1)


def test_only_runs_of_the_same_windows_stand_side_by_side(runs):
    assert protocols.alike(runs)
    assert not protocols.alike(runs[:1])
    assert not protocols.alike([runs[0], runs[0]])
    runs[1].windows.pop()
    assert not protocols.alike(runs)
    with pytest.raises(UserError, match="one by one"):
        protocols.protocol_rows(runs)


def test_the_verdict(runs):
    shown, sentences = protocol_tables.verdict(protocols.protocol_rows(runs))
    assert shown
    assert "int4 3.0" in sentences[0]
    for window, step in zip(runs[0].windows, runs[1].windows, strict=True):
        step.kl = window.kl
    assert not protocol_tables.verdict(protocols.protocol_rows(runs))[0]
