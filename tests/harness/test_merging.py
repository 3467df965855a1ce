"""Runs are joined to what one run of all would have been, or refused with the field in which they differ."""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kvdelta.harness.comparison import compare
from kvdelta.harness.merging import Part, merged
from kvdelta.harness.records import tokens
from kvdelta.harness.records.record import save_record
from kvdelta.harness.records.run_folder import RUN_FILE, load_run
from kvdelta.harness.records.writer import LOCK, holding, writing
from kvdelta.schemes.errors import UserError

A, B = "int8:group_size=16", "asym2:group_size=16"


@pytest.fixture
def made(subject, options, tmp_path):
    """A run of schemes on some of the windows, in a folder of its own."""

    def make(name, schemes, windows=(0, 1, 2), **changed):
        some = replace(subject, windows=[subject.windows[i] for i in windows])
        return Part(*compare(schemes, replace(options, out=str(tmp_path / name), **changed), subject=some))

    return make


def alike(run, other):
    """But for the command."""
    assert run.model_copy(update={"command": ""}) == other.model_copy(update={"command": ""})


def test_schemes_are_added(made, tmp_path):
    run = merged([made("a", [A]), made("b", [B])], tmp_path / "out", "kvdelta merge a b --out out")
    both = made("both", [A, B])
    alike(run, both.run)
    assert load_run(tmp_path / "out") == run
    for window in run.windows:
        one, other = (tokens.load_tokens(folder, window.index) for folder in (tmp_path / "out", both.folder))
        assert all((one[name] == other[name]).all() for name in one)


def test_windows_are_added(made, tmp_path):
    """But for the noise floor, which is of the first windows, and what a batch was."""
    parts = [made("a", [A, B], (0, 2)), made("b", [A, B], (1,))]
    run, whole = merged(parts, tmp_path / "out", "x"), made("both", [A, B]).run
    assert run.windows == whole.windows
    assert (run.settings, run.audit, run.contenders) == (whole.settings, whole.audit, whole.contenders)
    assert run.noise_floor.routes == parts[0].run.noise_floor.routes
    assert run.noise_floor.delta_nll < parts[0].run.noise_floor.delta_nll
    assert load_run(tmp_path / "out") == run


def test_schemes_and_windows_are_added(made, tmp_path):
    parts = [made("a", [A], (0, 1)), made("b", [B], (0, 1)), made("c", [A, B], (2,))]
    run = merged(parts, tmp_path / "out", "x")
    assert run.windows == made("both", [A, B]).run.windows


@pytest.mark.parametrize("some", [((0, 2), (0, 1, 2)), ((0, 1), (1, 2)), ((1, 2), (0, 1), (1,))])
@pytest.mark.parametrize("kept", ["with tokens", "without"])
def test_windows_that_several_runs_have_count_once(made, tmp_path, some, kept):
    parts = [made(f"part-{i}", [A, B], windows) for i, windows in enumerate(some)]
    if kept == "without":
        for part in parts:
            shutil.rmtree(part.folder / "tokens")
    run, whole = merged(parts, tmp_path / "out", "x"), made("both", [A, B]).run
    assert (run.settings, run.audit, run.batches) == (whole.settings, whole.audit, whole.batches)
    assert load_run(tmp_path / "out") == run
    for window, other in zip(run.windows, whole.windows, strict=True):
        assert window == other.model_copy(update={} if kept == "with tokens" else {"tokens": ""})


def test_what_shared_windows_do_not_say_alone_is_refused(made, tmp_path, refused):
    """Where layers read more in one window than in another, the sum over both does not say what they read in one."""
    a, b = made("a", [A], (0, 1)), made("b", [A], (1, 2))
    for part in (a, b):
        part.run.windows[-1 if part is a else 0].key_pairs[1] -= 1
    with refused(
        f"a shares 1 windows|b shares 1 windows with other runs, and not all, and {A} did not read equally much"
    ):
        merged([a, b], tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "said"), [("kl", "KL"), ("top1", "agreeing tokens"), ("key_pairs", "pairs read")])
def test_every_figure_of_a_shared_window_is_compared(made, tmp_path, refused, field, said):
    a, b = made("a", [A], (0, 1)), made("b", [A], (1, 2))
    getattr(b.run.windows[0], field)[1] += 1
    with refused(f"the {said} of symmetric:bits=8,group_size=16 in window {b.run.windows[0].index} are .* in .*a and"):
        merged([a, b], tmp_path / "out", "x")


def test_a_merge_that_was_stopped_goes_on(made, tmp_path, monkeypatch):
    """By a full disk, say, at its second window."""
    parts, out = [made("a", [A]), made("b", [B])], tmp_path / "out"
    save, saved = tokens.save_tokens, []

    def full(folder, window, arrays):
        if saved:
            raise UserError("No space left on device")
        saved.append(window)
        return save(folder, window, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "save_tokens", full)
        with pytest.raises(UserError, match="No space left"):
            merged(parts, out, "x")
    assert load_run(out).status == "running"
    run = merged(parts, out, "x")
    alike(run, made("both", [A, B]).run)
    assert load_run(out) == run


def test_what_a_stopped_merge_left_is_no_ones_but_its_runs(made, tmp_path, refused):
    parts = [made("a", [A]), made("b", [B])]
    merged(parts, tmp_path / "out", "x")
    with refused(r"out holds another run \(it differs in contenders\)"):
        merged([parts[0], parts[0]], tmp_path / "out", "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with refused("full is not empty and holds no run"):
        merged(parts, tmp_path / "full", "x")


def test_a_merge_waits_for_no_writer(made, tmp_path, refused):
    """It looks into the folder when it holds it."""
    parts, out = [made("a", [A]), made("b", [B])], tmp_path / "out"
    out.mkdir()
    with writing(out, wait=False), ExitStack() as held, refused("out is being written by process"):
        merged(parts, out, "x", holding(held, wait=False))
    assert {path.name for path in out.iterdir()} == {LOCK}


def test_windows_are_added_from_the_command_line(kvdelta):
    """Every grid of windows has the first."""
    for count in ("2", "4", "3"):
        code, _, err = kvdelta("compare", "--scheme", A, "--windows", count, "--out", f"w{count}")
        assert code == 0, err
    assert kvdelta("merge", "w2", "w4", "--out", "w24")[0] == 0
    two, four, three, run = (load_run(folder) for folder in ("w2", "w4", "w3", "w24"))
    assert {window.index for window in two.windows} & {window.index for window in four.windows}
    assert (run.settings, run.windows, run.audit, run.summary) == (
        four.settings,
        four.windows,
        four.audit,
        four.summary,
    )
    assert kvdelta("merge", "w3", "w4", "--out", "w34")[0] == 0
    run = load_run("w34")
    scored = {window.index: window for one in (three, four) for window in one.windows}
    assert run.windows == [scored[index] for index in sorted(scored)]
    assert len(four.windows) < len(run.windows) < len(three.windows) + len(four.windows)
    layers = run.audit.reads["exact"].values()
    assert sum(layer.pairs for layer in layers) == sum(window.pairs[0] for window in run.windows)


def test_a_merged_run_is_the_run_of_its_settings(made, tmp_path):
    """The command of all finds it complete."""
    merged([made("a", [A]), made("b", [B])], tmp_path / "both", "x")
    before = (tmp_path / "both" / RUN_FILE).stat().st_mtime_ns
    made("both", [A, B])
    assert (tmp_path / "both" / RUN_FILE).stat().st_mtime_ns == before


def test_runs_without_tokens_are_merged(made, tmp_path):
    a, b = made("a", [A]), made("b", [B])
    for path in (a.folder / "tokens").iterdir():
        path.unlink()
    (a.folder / "tokens").rmdir()
    run = merged([Part(load_run(a.folder), a.folder), b], tmp_path / "out", "x")
    assert [window.nll for window in run.windows] == [window.nll for window in made("both", [A, B]).run.windows]
    assert not tokens.has_tokens(tmp_path / "out")
    assert load_run(tmp_path / "out") == run


def test_a_merge_keeps_tokens_where_all_runs_did(made, tmp_path):
    """And else has no quantile over all of them."""
    a, b = made("a", [A], (0, 1)), made("b", [A], (2,))
    shutil.rmtree(b.folder / "tokens")
    run = merged([a, Part(load_run(b.folder), b.folder)], tmp_path / "out", "x")
    assert not tokens.has_tokens(tmp_path / "out")
    assert load_run(tmp_path / "out") == run
    assert [one.kl_999 for one in run.contenders] == [None, None]
    whole = merged([a, made("c", [A], (2,))], tmp_path / "whole", "x")
    assert whole.contenders[1].kl_999 == made("both", [A]).run.contenders[1].kl_999


def test_a_scheme_in_other_words_is_the_same_scheme(made, tmp_path):
    """The audit follows it: what was found of it under one name counts under the other."""
    a, b = made("a", [A], (0, 1)), made("b", ["symmetric:bits=8,group_size=16"], (2,))
    b.run.audit.zeroed_codes_move_logits["symmetric:bits=8,group_size=16"] = False
    run = merged([a, b], tmp_path / "out", "x")
    assert run.audit.failures == {A: ["zeroing its stored codes does not move the logits"]}
    assert run.audit.reads.keys() == {"exact", A}
    assert run.audit.reads[A] == made("both", [A]).run.audit.reads[A]


def test_schemes_of_one_name_are_no_one_scheme(made, tmp_path, refused):
    a, b = made("a", [A]), made("b", [B])
    b.run.contenders[1].label = A
    with refused(f"two schemes of these runs are called {A}, and are not the same"):
        merged([a, b], tmp_path / "out", "x")


def test_a_row_that_failed_in_one_run_is_named(made, tmp_path, refused):
    a, b = made("a", [A]), made("b", [A])
    for window in b.run.windows:
        window.nll[1] = float("nan")
    with refused(
        "symmetric:bits=8,group_size=16 has failed by window .* in .*b, and not in the other run: score it again there with --retry-failed"
    ):
        merged([a, b], tmp_path / "out", "x")


def test_what_does_not_fit_is_refused(made, tmp_path, refused):
    out = tmp_path / "out"
    a = made("a", [A])
    with refused(r"a and .*seed are runs of different settings .* \(seed: 0 and 1\)"):
        merged([a, made("seed", [B], seed=1)], out, "x")
    with refused(r"\(protocol: two-pass and stepwise; step: None and 8\)"):
        merged([a, made("steps", [B], protocol="stepwise", step=8)], out, "x")
    index = a.run.windows[1].index
    with refused("has no figures for 1 window of .*c, such as"):
        merged([made("b", [A, B], (0, 1)), made("c", [A], (2,))], out, "x")
    other = made("other", [B])
    other.run.windows[1].nll[0] += 1e-9
    with refused(rf"the losses of exact in window {index} are .* cannot stand in one table"):
        merged([a, other], out, "x")
    other.run.windows[1].nll[0] -= 1e-9
    other.run.status = "running"
    with refused("other is not complete: give the command that made it again"):
        merged([a, other], out, "x")
    assert not out.exists()


def test_the_command_says_what_it_made(kvdelta, made, tmp_path, capsys):
    made("a", [A]), made("b", [B])
    code, out, err = kvdelta("merge", "a", "b", "--out", "both")
    assert code == 0
    assert "record: both" in err
    assert [word for line in out.splitlines() for word in line.split()[:1] if word in ("exact", A, B)] == [
        "exact",
        A,
        B,
    ]
    assert load_run(tmp_path / "both").command == "kvdelta merge a b --out both"
    code, again, err = kvdelta("merge", "a", "b", "--out", "both")
    assert (code, again) == (0, out)
    assert "both holds this run already, complete; its record is printed again\n" in err
    code, out, err = kvdelta("merge", "a", "--out", "c")
    assert (code, err) == (2, "kvdelta: merge joins runs, and a is one: name two or more\n")
    code, out, err = kvdelta("verify", "both")
    assert (code, err) == (0, "checked: 1, damaged: 0\n")
    assert out == "both/run.json: whole (3 schemes, 3 of 3 windows, complete; sums recomputed from its tokens)\n"
    run = load_run("both")
    run.windows[0].nll[1] += 1
    save_record(run, Path("both") / RUN_FILE)
    code, out, err = kvdelta("verify", "a", "both")
    assert (code, err) == (2, "checked: 2, damaged: 1\n")
    assert "both/run.json: damaged" in out
    assert f"\n  window {run.windows[0].index}: its sums are not those of tokens/" in out
