"""The rows of tasks, from a record made by hand."""

import math

import pytest
from scipy import stats

from kvdelta.analysis.reading.task_tables import cell_table, depth_table, heading, notes, title, titled_tables
from kvdelta.analysis.reading.tasks import cell_rows, depth_rows, depths_of, saturated, task_rows
from kvdelta.harness.records.run import Bytes, ContenderRecord, Settings
from kvdelta.harness.records.tasks import Cell, SampleRecord, TaskRecord

NLL = [[1.0, 1.5, 3.0], [0.8, 1.0, 4.0], [0.4, 0.4, 2.0], [0.2, 0.5, 6.0], [0.6, 0.7, 5.0], [1.2, 1.0, 7.0]]
MATCH = [[True, True, False], [True, False, False], [True, True, False], [False, True, False], [True, True, False]]
MATCH += [[True, True, False]]
COUNTS = [2, 2, 2, 4, 2, 2]


def contender(label, lossless=False, error=None):
    return ContenderRecord(
        label=label,
        name=label,
        lossless=lossless,
        quantized_sides=[] if lossless else ["key", "value"],
        spec={},
        quantized_layers=[0],
        bytes=None,
        error=error,
    )


def bits(counted):
    return {"key": Bytes(held={"codes": 4}, counted=counted, elements=16)}


@pytest.fixture
def record():
    settings = Settings(
        model={}, text_sha256="", protocol="two-pass", step=None, window_length=512, score_length=0, stride=1, windows=[],
        bos_token_id=None, device="cpu", dtype="float32", attention="", seed=0, contenders=["exact", "int4", "int2"],
        versions={},
    )  # fmt: skip
    samples = [
        SampleRecord(
            task="kv", length=512, number=i, depth=float(i % 2), at=0.1, context=500 + i, question=10, count=COUNTS[i],
            answers=2, chance=0.25, ids="", nll=NLL[i], kl=[0.0, 0.2, 2.0], match=MATCH[i], found=[2 * m for m in MATCH[i]],
            key_pairs=[100, 90, 90], value_pairs=[100, 70, 70], pairs=[100, 100, 100],
        )
        for i in range(6)
    ]  # fmt: skip
    return TaskRecord(
        kvdelta="0", status="complete", command="kvdelta tasks", commit=None, model_name="m", text_name="t", text_source={},
        text_tokens=1, layers=1, threads=1, settings=settings, planned=6, samples=samples,
        contenders=[contender("exact", lossless=True), contender("int4"), contender("int2")],
        cells=[Cell(task="kv", length=512, level=2, said="pairs all", verdict="fine", bytes=[bits(32), bits(8.5), bits(4)])],
    )  # fmt: skip


def test_a_row_is_that_of_its_samples(record):
    exact, int4, int2 = cell_rows(record, record.cells[0])
    more = [(n[1] - n[0]) / count for n, count in zip(NLL, COUNTS, strict=True)]
    expected = stats.ttest_1samp(more, 0)
    low, high = expected.confidence_interval(0.95)
    assert int4.delta_nll == pytest.approx(sum(more) / 6)
    assert (int4.delta_nll_low, int4.delta_nll_high) == pytest.approx((low, high))
    assert int4.p == pytest.approx(expected.pvalue)
    assert exact.delta_nll == exact.delta_nll_low == exact.delta_nll_high == 0
    assert exact.nll == pytest.approx(sum(n[0] / count for n, count in zip(NLL, COUNTS, strict=True)) / 6)
    assert [row.match for row in (exact, int4, int2)] == [5, 5, 0]
    assert (int4.lost, int4.gained, int2.lost, int2.gained) == (1, 1, 5, 0)
    assert (int4.p_match, int2.p_match) == (1, pytest.approx(stats.binomtest(5, 5).pvalue))
    assert int2.p_match_holm == pytest.approx(2 * int2.p_match)
    assert int2.p_holm == pytest.approx(min(1, 2 * int2.p))
    assert (exact.read, int4.read) == (1.0, pytest.approx(0.8))
    assert (exact.bits, int4.bits, int2.bits) == (16, 4.25, 2)
    assert (int4.found, int4.chance, int4.context) == (pytest.approx(5 / 6), 0.25, 502.5)
    assert int4.kl == pytest.approx(0.2 * (5 / 2 + 1 / 4) / 6)


def test_samples_that_share_a_context_are_one_of_the_unit(record):
    """Each of three contexts has two samples: the interval is that of three means, and copies of a sample add no certainty."""
    for i, sample in enumerate(record.samples):
        sample.context_ids = "abc"[i // 2]
    _, int4, _ = cell_rows(record, record.cells[0])
    more = [(n[1] - n[0]) / count for n, count in zip(NLL, COUNTS, strict=True)]
    expected = stats.ttest_1samp([(a + b) / 2 for a, b in zip(more[::2], more[1::2], strict=True)], 0)
    assert (int4.samples, int4.contexts) == (6, 3)
    assert (int4.delta_nll_low, int4.delta_nll_high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert int4.p == pytest.approx(expected.pvalue)
    assert notes(record)[0] == (
        "kv, 512 tokens: 6 samples of 3 contexts: intervals are over contexts, each the mean of its samples; McNemar's p "
        "holds for independent samples only"
    )
    record.samples = [record.samples[0].model_copy(update={"number": i}) for i in range(6)]
    _, int4, _ = cell_rows(record, record.cells[0])
    assert int4.contexts == 1
    assert math.isnan(int4.delta_nll_low)
    assert math.isnan(int4.p)
    assert "6 samples of 1 context:" in notes(record)[0]


def test_contexts_of_unequal_size_weigh_the_same_in_nll_and_its_difference(record):
    for i, sample in enumerate(record.samples):
        sample.context_ids = "a" if i < 5 else "b"
    exact, int4, _ = cell_rows(record, record.cells[0])
    nll = [[n[j] / count for n, count in zip(NLL, COUNTS, strict=True)] for j in (0, 1)]
    means = [(sum(one[:5]) / 5 + one[5]) / 2 for one in nll]
    assert [exact.nll, int4.nll] == pytest.approx(means)
    assert int4.delta_nll == pytest.approx(means[1] - means[0])


def test_one_sample_has_no_interval_and_no_p(record):
    record.samples = record.samples[:1]
    _, body = cell_table(cell_rows(record, record.cells[0]))
    assert body[1][2:4] == ["+0.2500", "–"]
    assert ": 1 sample, two-pass" in heading(record)[1]


def test_by_depth_the_samples_are_parted(record):
    assert depths_of(record, record.cells[0]) == [0.0, 1.0]
    rows = depth_rows(record)
    assert [(row.depth, row.scheme, row.samples) for row in rows][:4] == [
        (0.0, "exact", 3), (0.0, "int4", 3), (0.0, "int2", 3), (1.0, "exact", 3),
    ]  # fmt: skip
    whole = cell_rows(record, record.cells[0])
    for i, row in enumerate(whole):
        assert row.match == sum(part.match for part in rows[i::3])
        assert row.delta_nll == pytest.approx(sum(part.delta_nll for part in rows[i::3]) / 2)
    header, body = depth_table(record, record.cells[0], [0.0, 1.0])
    assert header == ["scheme", "depth 0 %", "depth 100 %"]
    assert body[0][1] == f"NLL {rows[0].nll:.3f}  3/3"


def test_a_row_that_failed_or_was_not_read_shows_no_score(record):
    record.contenders[1].error = "it broke"
    record.audit.failures = {"int4": ["it failed: it broke"], "int2": ["cache not read (key coverage 0)"]}
    _, int4, int2 = cell_rows(record, record.cells[0])
    assert (int4.refused, int2.refused) == ("failed", "cache not read")
    assert math.isnan(int4.delta_nll)
    _, body = cell_table(cell_rows(record, record.cells[0]))
    assert body[1][2:] == ["failed", *["–"] * 8]
    assert body[2][2:] == ["cache not read", *["–"] * 8]
    assert notes(record) == ["int4: failed: it broke"]


def test_what_the_model_cannot_stands_in_the_rows_and_in_the_notes(record):
    record.cells.append(Cell(task="vt", length=512, level=None, said="", verdict="the model cannot: …", cannot=True))
    (row,) = [row for row in task_rows(record) if row.task == "vt"]
    assert (row.cannot, row.samples, row.verdict) == (True, 0, "the model cannot: …")
    assert "vt, 512 tokens: the model cannot: …" in notes(record)
    assert len(titled_tables(record)) == 1


def test_where_exact_is_always_right_it_is_said(record):
    rows = cell_rows(record, record.cells[0])
    assert not saturated(rows)
    assert title(record.cells[0], rows) == (
        f"kv, 512 tokens (pairs all): exact matches 5 of 6, NLL {rows[0].nll:.3f}; chance 25.0 %"
    )
    for sample in record.samples:
        sample.match[0] = True
    assert saturated(cell_rows(record, record.cells[0]))
    assert notes(record)[-1].endswith("NLL alone tells schemes apart: kv, 512 tokens")
