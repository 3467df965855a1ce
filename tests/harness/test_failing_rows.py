"""A row that fails is a row: it ends with its reason, is dropped, stopped by the clock, and tried again; the others are as without it."""

import io
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from kvdelta.harness import time_limit
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.runner import Progress
from kvdelta.schemes.errors import UserError

OURS = ["int8:group_size=16", "asym2:group_size=16"]


class Faulty(DynamicCache):
    """What `do` says is done to what it returns in the scored forward."""

    def __init__(self, config, do):
        super().__init__(config=config)
        self.do, self.calls = do, 0

    def update(self, *args, **kwargs):
        self.calls += 1
        both = super().update(*args, **kwargs)
        return self.do(*both) if self.calls > 2 else both


def hangs(keys, values):
    time.sleep(3600)
    return keys, values


COUNTS = {
    "one too few": (lambda k, v: (k[:, :, 1:], v[:, :, 1:]), r"returned 127 tokens, and get_mask_sizes said 128"),
    "one too many": (
        lambda k, v: (torch.cat([k[:, :, :1], k], 2), torch.cat([v[:, :, :1], v], 2)),
        "returned 129 tokens",
    ),
    "fewer values": (lambda k, v: (k, v[:, :, 1:]), r"returned 128 keys and 127 values: equally many are owed"),
}


def bad(do, label="bad"):
    return ForeignContender(label, lambda config: Faulty(config, do))


def same_but_for(run, alone, label):
    rows = [i for i, one in enumerate(run.contenders) if one.label != label]
    for window, other in zip(run.windows, alone.windows, strict=True):
        assert [window.nll[i] for i in rows] == other.nll
    assert [i for i, one in enumerate(run.contenders) if one.error] == [
        i for i, one in enumerate(run.contenders) if one.label == label
    ]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("step", [None, 1])
def test_a_wrong_number_of_tokens_fails_the_row(subject, options, count, step):
    """Attention refuses some of them by itself; without a mask, as of one token at a time, it would take them."""
    do, said = COUNTS[count]
    options = replace(options, protocol="stepwise", step=step) if step else options
    subject = replace(subject, windows=subject.windows[:1])
    run, _ = compare([bad(do), OURS[0]], options, subject=subject)
    if step is None:
        assert re.search(said, run.contenders[1].error)
    assert run.contenders[1].error.startswith("UserError: update of layer 0 returned")
    alone, _ = compare(OURS[:1], replace(options, out=f"{options.out}-alone"), subject=subject)
    same_but_for(run, alone, "bad")


def too_large(keys, values):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")


@pytest.mark.parametrize("batch", ["1", "2"])
def test_what_finds_no_memory_by_itself_fails_its_row(subject, options, batch):
    """With one window: there is nothing left to halve."""
    run, _ = compare([bad(too_large), OURS[0]], replace(options, batch=batch), subject=subject)
    assert run.contenders[1].error == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9.00 GiB"
    alone, _ = compare(OURS[:1], replace(options, batch=batch, out=f"{options.out}-alone"), subject=subject)
    same_but_for(run, alone, "bad")


def test_what_hangs_is_stopped(subject, options):
    started = time.monotonic()
    run, _ = compare([bad(hangs), *OURS], replace(options, time_limit=1.0), subject=subject)
    assert time.monotonic() - started < 60
    assert run.contenders[1].error == "TookTooLong: it took longer than 1 s (--time-limit)"
    alone, _ = compare(OURS, replace(options, out=f"{options.out}-alone"), subject=subject)
    same_but_for(run, alone, "bad")


def stubborn(keys, values):
    """As a cache that tries again whatever happens."""
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with suppress(Exception):
            time.sleep(0.1)
    return hangs(keys, values)


def test_what_catches_exceptions_is_stopped(subject, options):
    subject = replace(subject, windows=subject.windows[:1])
    before = signal.getsignal(signal.SIGALRM)
    run, _ = compare([bad(stubborn), OURS[0]], replace(options, time_limit=0.5), subject=subject)
    assert run.contenders[1].error == "TookTooLong: it took longer than 0.5 s (--time-limit)"
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0, 0))


def test_a_time_limit_without_a_terminal(subject, options, monkeypatch):
    """stderr may be no file, as in a notebook."""
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    run, _ = compare(OURS, replace(options, time_limit=600.0), subject=subject)
    assert [one.error for one in run.contenders] == [None] * 3


def test_a_time_limit_that_is_kept_changes_nothing(subject, options):
    run, _ = compare(OURS, replace(options, time_limit=600.0), subject=subject)
    alone, _ = compare(OURS, replace(options, out=f"{options.out}-alone"), subject=subject)
    assert run.windows == alone.windows


def test_a_time_limit_needs_a_timer(subject, options, monkeypatch, refused):
    monkeypatch.delattr(time_limit.signal, "setitimer")
    with refused("a time limit needs a system with timers"):
        compare(OURS, replace(options, time_limit=1.0), subject=subject)
    with refused("time_limit=0: give seconds, more than 0"):
        replace(options, time_limit=0.0)


class FewerAbove(DynamicCache):
    """Keeps the newest 40 tokens in its second layer, and says so of that layer."""

    def update(self, keys, values, layer, *args, **kwargs):
        both = super().update(keys, values, layer, *args, **kwargs)
        return tuple(x[:, :, -(self._past(layer) + keys.shape[2]) :] for x in both) if layer else both

    def _past(self, layer):
        return min(40, super().get_seq_length(0)) if layer else super().get_seq_length(0)

    def get_mask_sizes(self, queries, layer):
        return self._past(layer) + queries, 0


def test_a_cache_may_keep_fewer_tokens_in_some_layers(subject, options):
    """It has no mask where it is asked token by token."""
    subject = replace(subject, windows=subject.windows[:1])
    options = replace(options, protocol="stepwise", step=1)
    run, _ = compare([ForeignContender("fewer", lambda config: FewerAbove(config=config))], options, subject=subject)
    assert run.contenders[1].error is None


def fails_until(mended):
    def factory(config):
        if not Path(mended).exists():
            raise OSError("no driver")
        return Faulty(config, lambda keys, values: (keys * 1.01, values * 1.01))

    return ForeignContender("bad", factory)


def test_failed_rows_are_tried_again(subject, options, tmp_path):
    """And are then as if they had not failed."""
    mended = tmp_path / "mended"
    contender, options = fails_until(mended), replace(options, seed=3)
    run, folder = compare([contender, *OURS], options, subject=subject)
    assert run.contenders[1].error == "OSError: no driver"
    again, _ = compare([contender, *OURS], replace(options, retry_failed=True), subject=subject)
    assert (again.contenders[1].error, again.windows[0].nll[2:]) == ("OSError: no driver", run.windows[0].nll[2:])
    mended.touch()
    unasked, _ = compare([contender, *OURS], options, subject=subject)
    assert unasked.contenders[1].error == "OSError: no driver"
    notes = []
    progress = Progress(on_note=notes.append)
    again, _ = compare([contender, *OURS], replace(options, retry_failed=True), subject=subject, progress=progress)
    whole, _ = compare([contender, *OURS], replace(options, out=f"{options.out}-whole"), subject=subject)
    assert "scored again: bad" in notes
    assert again == whole == load_run(folder)
    assert again.audit.failures == {}
    assert not (folder / "again").exists()
    again, _ = compare([contender, *OURS], replace(options, retry_failed=True), subject=subject)
    assert again == whole  # nothing has failed, nothing is scored


def test_a_row_that_failed_later_is_tried_again_whole(subject, options, tmp_path):
    made = []

    def factory(config):
        made.append(config)
        if len(made) == 2:
            raise RuntimeError("once")
        return Faulty(config, lambda keys, values: (keys * 1.01, values * 1.01))

    contender = ForeignContender("bad", factory)
    run, _ = compare([contender, *OURS], options, subject=subject)
    assert [np.isfinite(window.nll[1]) for window in run.windows] == [True, False, False]
    again, folder = compare([contender, *OURS], replace(options, retry_failed=True), subject=subject)
    whole, _ = compare([contender, *OURS], replace(options, out=f"{options.out}-whole"), subject=subject)
    assert again == whole == load_run(folder)


def test_a_run_whose_exact_row_differs_is_not_mixed(subject, options, tmp_path, refused):
    """As on another machine."""
    mended = tmp_path / "mended"
    contender = fails_until(mended)
    compare([contender, *OURS], options, subject=subject)
    mended.touch()
    weight = subject.loaded.model.lm_head.weight
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight[5] *= 1.001
        with refused("the losses of exact in window .* cannot stand in one table"):
            compare([contender, *OURS], replace(options, retry_failed=True), subject=subject)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_run_goes_on_without_a_scheme(subject, options):
    class Stop(Exception):
        pass

    def stop(windows, contender, label, nll):
        if windows.start == 1:
            raise Stop

    with pytest.raises(Stop):
        compare(OURS, options, subject=subject, progress=Progress(stop))
    run, folder = compare(OURS, replace(options, drop=["asym2:group_size=16"]), subject=subject)
    alone, _ = compare(OURS[:1], replace(options, out=f"{options.out}-alone"), subject=subject)
    same_but_for(run, alone, OURS[1])
    assert run.contenders[2].error == "dropped after 1 windows (--drop)"
    assert [np.isfinite(window.nll[2]) for window in run.windows] == [True, False, False]
    again, _ = compare(OURS, replace(options, retry_failed=True), subject=subject)
    whole, _ = compare(OURS, replace(options, out=f"{options.out}-whole"), subject=subject)
    assert again == whole == load_run(folder)


def test_what_is_dropped_stays_dropped(subject, options):
    run, _ = compare(OURS, replace(options, drop=[OURS[0]], retry_failed=True), subject=subject)
    assert run.contenders[1].error == "dropped after 0 windows (--drop)"


@pytest.mark.parametrize("name", ["exact", "kivi4", "int9"])
def test_only_schemes_of_the_run_are_dropped(subject, options, name):
    with pytest.raises(
        UserError, match=f"drop={name}: it is none of the schemes that can be dropped here, which are int8"
    ):
        compare(OURS, replace(options, drop=[name]), subject=subject)
