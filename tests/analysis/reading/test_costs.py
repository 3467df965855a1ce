"""Benches as tables: figures that can be checked on paper."""

import pytest

from kvdelta.analysis.reading import costs
from kvdelta.harness.records.bench import (
    AGAIN,
    BASELINE,
    CONTROLS,
    TWO_PASS,
    Bench,
    Held,
    Times,
    load_bench,
    save_bench,
)
from kvdelta.harness.records.run_folder import RUN_FILE


def bench(kind, times, held=(), contenders=("exact", "kivi4")):
    return Bench(
        kind=kind, kvdelta="0", command="kvdelta bench", commit=None, versions={}, host={}, model_name="a model",
        contenders={label: "kivi:bits=4" if label == "kivi4" else label for label in contenders}, device="cpu",
        dtype="float32", threads=2, batch=1, rounds=3, suffix=512, held=list(held),
        times=[
            Times(name=name, part=part, context=context, seconds=seconds)
            for (name, part, context), seconds in times.items()
        ],
    )  # fmt: skip


PASSES = {
    ("prefill", "prefill", 100): [4.0, 4.0, 8.0],
    (BASELINE, "fill", 100): [0.0, 0.0, 0.0],
    (BASELINE, "suffix", 100): [1.0, 1.0, 2.0],
    ("kivi4", "fill", 100): [1.0, 1.0, 2.0],
    ("kivi4", "suffix", 100): [2.0, 3.5, 4.0],
    (AGAIN, "fill", 100): [0.0, 0.0, 0.0],
    (AGAIN, "suffix", 100): [1.0, 2.0, 2.0],
}


def test_a_scheme_is_compared_with_the_exact_passes_of_its_own_round():
    exact, kivi, again = costs.cost_rows(bench("schemes", PASSES))
    assert (kivi.fill_ms, kivi.suffix_ms) == (1000, 3500)
    assert (kivi.times_exact, kivi.times_exact_least, kivi.times_exact_most) == (3.0, 3.0, 3.0)
    assert kivi.fill_share == 0.25
    assert (exact.times_exact_least, again.times_exact_most) == (pytest.approx(2 / 3), pytest.approx(4 / 3))
    header, body = costs.shown(bench("schemes", PASSES))[1]
    assert body[1] == ["kivi4", "100", "1.00e+03", "3.50e+03", "3.00 [3.00, 3.00]", "25.0 %"]
    assert len(header) == len(body[0])


def test_steps_are_compared_by_eights():
    """One slow step of nine does not make a cache slow; it is the slowest."""
    times = {
        (BASELINE, "step", 100): [1.0] * 16,
        ("kivi4", "step", 100): [2.0] * 7 + [9.0] + [1.0] * 8,
        (AGAIN, "step", 100): [1.0] * 16,
    }
    held = [
        Held(name=BASELINE, context=100, resident=8_000_000, transient=None),
        Held(name="kivi4", context=100, resident=2_000_000, transient=1_000_000),
    ]
    rows = costs.step_rows(bench("decode", times, held))
    kivi = rows[1]
    assert (kivi.times_exact, kivi.times_exact_least, kivi.times_exact_most) == (1.5, 1.0, 2.0)
    assert kivi.slowest == 9.0 / 1.5
    assert costs.step_table(rows)[1][1][-3:] == ["2.00", "4.00", "1.00"]
    assert costs.step_table(rows)[1][0][-1] == "–"


def test_shares_of_a_comparison():
    window = {(BASELINE, "window"): 3.0, (TWO_PASS, "window"): 4.2, (CONTROLS, "window"): 9.0, (AGAIN, "window"): 3.0}
    parts = {
        (name, part): 2.0 if part == "prefill" else 1.0 for name in (BASELINE, AGAIN) for part in ("prefill", "suffix")
    }
    times = window | parts | {(CONTROLS, "controls"): 6.0, (TWO_PASS, "scoring"): 0.2, ("stepwise 16", "window"): 8.4}
    rows = costs.share_rows(bench("compare", {(*key, 100): [x] * 3 for key, x in times.items()}))
    figures = {row.figure: row.median for row in rows}
    assert figures["a window of 2 rows, in windows of the exact cache"] == pytest.approx(1.4)
    assert figures["  against the ideal"] == pytest.approx(1.4 / (4 / 3))
    assert figures["controls of the first windows, in windows of the exact cache"] == pytest.approx(2.0)
    assert figures["scoring a row, in suffix passes"] == pytest.approx(0.1)
    assert figures["a window stepwise 16, in windows by two passes"] == pytest.approx(2.0)
    assert figures["equal work: exact again, in windows of exact"] == 1.0


def test_a_record_is_read_as_it_was_written(tmp_path, refused):
    record = bench("schemes", PASSES)
    save_bench(record, tmp_path)
    assert load_bench(tmp_path) == record
    with refused("there is no bench.json in it"):
        load_bench(tmp_path / "none")
    (tmp_path / RUN_FILE).write_text("{}")
    with refused("has schema version None"):
        from kvdelta.harness.records.run_folder import load_run

        load_run(tmp_path)
