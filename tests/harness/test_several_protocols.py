"""Several protocols over one prefill: each has the record that it has alone."""

import pytest

from kvdelta.harness import runner as runners
from kvdelta.harness.comparison import compare, compare_protocols
from kvdelta.harness.records.run_folder import load_run, run_folders
from kvdelta.harness.records.tokens import load_tokens
from kvdelta.harness.runner import Progress
from kvdelta.schemes.errors import UserError

SPECS = ["int4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]


@pytest.fixture
def by(options):
    from dataclasses import replace

    return lambda out: replace(options, batch="2", out=out).by(["two-pass", "stepwise"], [8, 4])


def without_folder(run):
    return run.model_dump(exclude={"command"})


def test_one_run_equals_two(subject, by, tmp_path, monkeypatch):
    prefills = []
    prefill = runners.prefill
    monkeypatch.setattr(runners, "prefill", lambda *words, **how: prefills.append(1) or prefill(*words, **how))
    together = compare_protocols(SPECS, by(str(tmp_path / "one")), subject=subject)
    assert len(prefills) == 2  # batches, of two windows and of one
    assert [folder.name for _, folder in together] == ["two-pass", "stepwise-8", "stepwise-4"]
    for (run, folder), alone in zip(together, by(str(tmp_path / "two")), strict=True):
        other, there = compare(SPECS, alone, subject=subject)
        assert without_folder(run) == without_folder(other)
        for window in run.windows:
            ours, theirs = (load_tokens(place, window.index) for place in (folder, there))
            assert all((ours[name] == theirs[name]).all() for name in ("nll", "kl", "tvd", "top1"))
    first, last = together[0][0], together[-1][0]
    assert first.windows[0].nll != last.windows[0].nll
    assert last.audit.failures == {}
    assert first.windows[0].nll[0] == pytest.approx(last.windows[0].nll[0], abs=1e-3)  # each against its own exact


@pytest.mark.parametrize("stopped_by", ["two-pass", "stepwise (step 4)"])
def test_a_stopped_run_goes_on_where_each_protocol_was(subject, by, tmp_path, stopped_by):
    def stop(windows, contender, label, nll):
        if windows.start == 2 and label.endswith(stopped_by):
            raise KeyboardInterrupt

    ways = by(str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        compare_protocols(SPECS, ways, subject=subject, progress=Progress(stop))
    left = [len(load_run(folder).windows) for folder in run_folders(tmp_path / "run")]
    assert left == ([2, 2, 2] if stopped_by == "two-pass" else [3, 3, 2])
    runs = compare_protocols(SPECS, ways, subject=subject)
    whole = compare_protocols(SPECS, by(str(tmp_path / "whole")), subject=subject)
    for (run, _), (other, _) in zip(runs, whole, strict=True):
        assert without_folder(run) == without_folder(other)


def test_one_of_them_may_be_there_already(subject, by, tmp_path):
    ways = by(str(tmp_path / "run"))
    compare(SPECS, ways[1], subject=subject)
    passes, notes = [], []
    compare_protocols(
        SPECS, ways, subject=subject, progress=Progress(lambda *words: passes.append(words), notes.append)
    )
    assert len(passes) == 2 * len([*SPECS, "exact"]) * 2
    assert any("holds this run already" in note for note in notes)


def test_steps_belong_to_stepwise(options):
    with pytest.raises(UserError, match="belongs to the stepwise protocol"):
        options.by(["two-pass"], [16])
    with pytest.raises(UserError, match="give --step 16"):
        options.by(["two-pass", "stepwise"])
    assert [one.step for one in options.by(["stepwise", "stepwise"], [4, 4])] == [4]
    assert options.by(["two-pass"]) == [options]
