"""A run from windows to record: resumed, refused, recomputed from its raw part."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from kvdelta.analysis.cli.runs import ROW_FAILED, report_failures
from kvdelta.analysis.reading import summary
from kvdelta.harness import controls
from kvdelta.harness.caches.contenders import SchemeContender, contenders_of
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.comparison import compare, compare_protocols
from kvdelta.harness.passes import Passes
from kvdelta.harness.records import journal, writing
from kvdelta.harness.records.run_folder import journal_of, load_run, save_run
from kvdelta.harness.records.tokens import load_tokens, sums_of
from kvdelta.harness.runner import Progress
from kvdelta.harness.scoring import Scores, not_finite
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError

SPECS = ["int8:group_size=16", "asym2:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]


def test_every_summary_is_recomputable_from_the_raw_part(subject, options):
    run, folder = compare(SPECS, options, subject=subject)
    saved = load_run(folder)
    assert saved == run
    for window in saved.windows:
        arrays = load_tokens(folder, window.index)
        again = sums_of(arrays)
        assert again == {name: getattr(window, name) for name in again}
    nll = np.stack([load_tokens(folder, w.index)["nll"] for w in saved.windows]).astype(np.float64)
    rows = summary.summarize(saved)
    for i, row in enumerate(rows):
        d = (nll[:, i] - nll[:, 0]).mean(axis=1)
        assert row.ppl == pytest.approx(np.exp(nll[:, i].mean()), rel=1e-12)
        assert row.delta_nll == pytest.approx(d.mean(), abs=1e-12)
        assert row.delta_nll_se == pytest.approx(d.std(ddof=1) / np.sqrt(len(d)), abs=1e-12)


def test_exact_row_is_exact(subject, options):
    run, _ = compare(["exact", "asym2:group_size=16"], options, subject=subject)
    rows = summary.summarize(run)
    assert (rows[0].delta_nll, rows[0].kl, rows[0].top1, rows[0].bits) == (0, 0, 100, 16)
    assert rows[1].kl > 0
    assert run.noise_floor.kl < 1e-9


def test_the_noise_floor_is_pooled_over_windows_and_scaled_to_the_mean_that_is_judged(subject, options):
    one, _ = compare(
        ["exact"],
        replace(options, windows=1, out=f"{options.out}-1"),
        subject=replace(subject, windows=subject.windows[:1]),
    )
    run, _ = compare(["exact"], options, subject=subject)
    assert {name: route["tokens"] for name, route in run.noise_floor.routes.items()} == {
        "single pass": 3 * 31,
        "token by token, 16 tokens a window": 3 * 16,
    }
    largest = max(route["rms"] for route in run.noise_floor.routes.values())
    assert run.noise_floor.delta_nll == pytest.approx(largest / (3 * 31) ** 0.5)
    first = max(route["rms"] for route in one.noise_floor.routes.values())
    assert one.noise_floor.delta_nll == pytest.approx(first / 31**0.5)
    assert largest != first


def test_pooled_routes_are_those_of_all_tokens_together():
    moved = torch.randn(50).double()
    parts = [
        {"tokens": float(len(x)), "rms": float(x.square().mean().sqrt()), "kl": float(x.abs().mean())}
        for x in moved.split([20, 30])
    ]
    whole = controls._pooled(*parts)
    assert whole["rms"] == pytest.approx(float(moved.square().mean().sqrt()))
    assert whole["kl"] == pytest.approx(float(moved.abs().mean()))


def test_measured_bits_and_bytes(subject, options):
    """asym2 with groups of 16: 2 + 32/16 bits; KIVI's exact tail counts 16 bits though float32 is held."""
    run, _ = compare(["asym2:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"], options, subject=subject)
    rows = {row.scheme: row for row in summary.summarize(run)}
    assert rows["asym2:group_size=16"].bits == 4
    key, value = 2 + 32 / 8, ((2 + 32 / 8) * 80 + 16 * 16) / 96
    assert rows["kivi:bits=2,group_size=8,residual_length=16"].bits == pytest.approx((key + value) / 2)
    held = run.contenders[2].bytes["value"].held
    assert held["tail"] == 2 * 2 * 16 * 16 * 4  # layers, heads, tokens, channels, bytes of float32
    assert held["codes"] == 2 * 2 * 80 * 16 * 2 // 8


def test_resume_goes_on_with_finished_windows(subject, options):
    class Stop(Exception):
        pass

    def stop(windows, contender, label, nll):
        if windows.start == 1 and contender == 1:
            raise Stop

    with pytest.raises(Stop):
        compare(SPECS, options, subject=subject, progress=Progress(stop))
    first = load_run(options.out)
    assert (first.status, len(first.windows)) == ("running", 1)
    seen = []
    run, _ = compare(SPECS, options, subject=subject, progress=Progress(lambda *call: seen.append(call)))
    assert {tuple(windows) for windows, *_ in seen} == {(1,), (2,)}
    whole, _ = compare(SPECS, replace(options, out=options.out + "-whole"), subject=subject)
    assert run.windows == whole.windows
    notes = []
    compare(SPECS, options, subject=subject, progress=Progress(on_note=notes.append))
    assert any("complete" in note for note in notes)


def test_a_folder_that_holds_another_run_is_refused(subject, options, tmp_path):
    compare(SPECS, options, subject=subject)
    before = load_run(options.out)
    with pytest.raises(ValueError, match=r"holds another run .*contenders.*--out"):
        compare(SPECS[:1], options, subject=subject)
    assert load_run(options.out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        compare(SPECS, replace(options, out=str(tmp_path / "mine")), subject=subject)


def test_equal_specs_are_merged_with_a_notice():
    notes = []
    found = contenders_of(["int4", "symmetric:bits=4", "exact", "kivi4"], notes.append)
    assert [c.label for c in found] == ["exact", "int4", "kivi4"]
    assert notes == ["symmetric:bits=4 is the same scheme as int4: taken once"]


def test_specs_and_contenders_compete_in_one_run(subject, options):
    stock = ForeignContender("stock", lambda config: DynamicCache(config=config))
    run, _ = compare([stock, "asym2:group_size=16"], options, subject=subject)
    assert [contender.label for contender in run.contenders] == ["exact", "stock", "asym2:group_size=16"]
    assert set(run.audit.failures) == {"stock"}  # it gives back what it was given


def test_a_prefix_within_the_residual_is_refused(subject, options):
    with pytest.raises(ValueError, match="prefix of 96 tokens would leave every key exact"):
        compare(["kivi4"], options, subject=subject)
    with pytest.raises(ValueError, match="packs nothing under 112 tokens"):
        compare(["gear(asym4:group_size=16):block=16,rank=1,prompt=112,prompt_rank=1"], options, subject=subject)


class Poisoned(SchemeContender):
    """int8 whose values are infinite in every window but the first."""

    def fill(self, cache, model, batch, prefilled):
        super().fill(cache, model, batch, prefilled)
        for _, side, store in cache.stores():
            if batch.windows[0].start and side == "value":
                store.runs[0].held.scale.fill_(float("inf"))


def test_a_scheme_that_is_not_finite_is_its_own_row(subject, options, tmp_path):
    """From the second window on; the others have what they have without it, and the record loads and shows."""
    spec, other = "int8:group_size=16", "asym2:group_size=16"
    bad = Poisoned("bad", parse_scheme(spec))
    seen = []
    progress = Progress(lambda windows, contender, label, nll: seen.append((windows, label)), seen.append)
    run, folder = compare([bad, other], options, subject=subject, progress=progress)
    alone, _ = compare([other], replace(options, out=str(tmp_path / "alone")), subject=subject)
    reason = f"NaN or infinite logits in window {subject.windows[1].index} (tokens from {subject.windows[1].start})"
    assert run.contenders[1].error == reason
    assert f"bad failed, the others go on: {reason}" in seen
    assert run.status == "complete"
    assert [np.isfinite(w.nll[1]) for w in run.windows] == [True, False, False]
    assert run.contenders[1].bytes is not None
    rows = {row.scheme: row for row in summary.summarize(load_run(folder))}
    assert rows[other] == {row.scheme: row for row in summary.summarize(alone)}[other]
    assert rows["bad"].error == reason
    assert report_failures(run) == ROW_FAILED


def test_records_that_do_not_say_what_failed_load(subject, options):
    """As those that were written before KL was kept from overflowing."""
    run, folder = compare(SPECS, options, subject=subject)
    run.windows[1].kl[2] = float("inf")
    save_run(run, folder)
    loaded = load_run(folder)
    assert [c.error for c in loaded.contenders] == [
        None,
        None,
        f"NaN or infinite losses or KL in window {run.windows[1].index}",
        None,
    ]
    assert np.isnan(summary.summarize(loaded)[2].kl)


def test_non_finite_logits_of_the_exact_cache_stop_the_run(subject, options):
    weight = subject.loaded.model.lm_head.weight
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight[5] = float("nan")
        with pytest.raises(UserError, match=r"tiny in float32, exact cache: NaN or infinite logits in window 0"):
            compare(SPECS, options, subject=subject)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize(("dtype", "way_out"), [("float16", "bfloat16 or float32"), ("bfloat16", "float32")])
def test_a_wider_dtype_is_named(subject, dtype, way_out):
    error = not_finite(Scores.none(1, 3), Batch((subject.windows[0],)), dtype)
    assert str(error) == f"NaN or infinite logits in window 0 (tokens from 0); try --dtype {way_out}"


def test_no_disk_space_is_one_clear_line(subject, options, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_atomically", full)
    with pytest.raises(ValueError, match="No space left on device; finished windows are kept"):
        compare(SPECS, options, subject=subject)


def test_stepwise_has_its_own_baseline(subject, options):
    run, _ = compare(SPECS, replace(options, protocol="stepwise", step=8), subject=subject)
    assert run.audit.failures == {}
    assert run.windows[0].kl[0] == 0
    assert "two passes" in run.noise_floor.routes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "three-pass"}, "choose two-pass"),
        ({"protocol": "stepwise"}, "give --step"),
        ({"step": 4}, "belongs to the stepwise"),
        ({"bos": "maybe"}, "choose auto"),
    ],
)
def test_options_that_do_not_go_together(options, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(options, **changes)


def test_records_of_another_schema_are_refused(subject, options, tmp_path):
    compare(SPECS, options, subject=subject)
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ValueError, match="schema version 99"):
        load_run(path.parent)
    with pytest.raises(ValueError, match=r"no run\.json"):
        load_run(tmp_path)


def test_a_window_adds_a_line_and_does_not_write_the_record_again(subject, options, monkeypatch):
    sizes, written = [], []
    append, write = journal.append, writing.write_atomically
    monkeypatch.setattr(journal, "append", lambda path, entry: (append(path, entry), sizes.append(len(entry))))
    monkeypatch.setattr(
        writing, "write_atomically", lambda path, content: (write(path, content), written.append(path.name))
    )
    run, folder = compare(SPECS, replace(options, batch="1"), subject=subject)
    assert len(sizes) == len(run.windows) >= 3
    assert max(sizes) < 1.1 * min(sizes)
    assert written.count("run.json") == 2  # when it begins and when it ends
    assert not journal_of(folder).exists()


def test_a_run_that_ran_out_of_memory_has_nothing_twice(subject, options, monkeypatch):
    """The first protocol has its batch in the journal when the second needs more than there is; then the run is stopped."""
    over, failed = Passes.over, []

    def scarce(self, position, run, batch, prefilled):
        if run.settings.protocol == "stepwise":
            failed.append(len(batch))
            if len(batch) > 1:
                raise torch.OutOfMemoryError
            if run.windows:
                raise KeyboardInterrupt
        return over(self, position, run, batch, prefilled)

    asked = replace(options, batch="2", out=str(Path(options.out) / "both")).by(["two-pass", "stepwise"], [8])
    monkeypatch.setattr(Passes, "over", scarce)
    with pytest.raises(KeyboardInterrupt):
        compare_protocols(SPECS[:1], asked, subject=subject)
    assert failed[0] == 2
    left = [load_run(one.out) for one in asked]
    assert [len({window.index for window in run.windows}) for run in left] == [2, 1]
    assert [run.batches for run in left] == [[1, 1], [1]]
    monkeypatch.setattr(Passes, "over", over)
    runs = compare_protocols(SPECS[:1], asked, subject=subject)
    assert [len(run.windows) for run, _ in runs] == [len(subject.windows)] * 2
