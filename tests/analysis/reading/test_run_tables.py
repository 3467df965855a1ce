"""What is printed: every number with its sign and digits, and nothing that the audit refused."""

import csv
import io
import json
import math

import pytest

from kvdelta.analysis.reading import run_tables, summary, tables


def body(run, baseline=None):
    rows = summary.summarize(run, baseline)
    header, cells = run_tables.cells(rows, summary.find(run, baseline) if baseline else 0)
    return [dict(zip(header, line, strict=True)) for line in cells]


def test_cells(run):
    exact, int8, int4, _ = body(run)
    assert (exact["ppl"], exact["ΔNLL [95 %]"], exact["bits"]) == ("7.3891", "baseline", "16.00")
    assert int8["ΔNLL [95 %]"] == "within noise"
    assert int4["ΔNLL [95 %]"] == "+0.2000 [-0.0484, +0.4484]"
    assert (int4["Δ%"], int4["KL"], int4["top-1 %"], int4["×"], int4["read V"]) == (
        "+22.14",
        "0.05",
        "90.0",
        "3.76",
        "0.600",
    )


def test_the_baseline_row_has_no_delta(run):
    assert [row["ΔNLL [95 %]"] for row in body(run, "int4")][2] == "baseline"


def test_a_row_that_the_audit_refused_shows_no_score(run):
    run.audit.failures = {"int4": ["cache not read (key coverage 0)"], "kivi2": ["losses bit-identical to int4"]}
    _, _, int4, kivi2 = body(run)
    assert (int4["ppl"], int4["Δ%"], int4["ΔNLL [95 %]"], int4["KL"]) == ("–", "–", "cache not read", "–")
    assert (kivi2["ppl"], kivi2["ΔNLL [95 %]"]) == ("–", "audit failed")


def test_a_row_that_failed_says_so(run):
    run.contenders[2].error = "RuntimeError: no more"
    run.audit.failures = {"int4": ["it failed: RuntimeError: no more"]}
    for window in run.windows:
        window.nll[2] = window.kl[2] = window.probability[2] = math.nan
    rows = summary.summarize(run)
    assert body(run)[2]["ΔNLL [95 %]"] == "failed"
    assert run_tables.notes(rows) == ["int4: failed: RuntimeError: no more"]
    assert list(csv.DictReader(io.StringIO(run_tables.as_csv(rows))))[2]["audit"] == "it failed: RuntimeError: no more"
    assert json.loads(run_tables.as_json(run, rows), parse_constant=pytest.fail)["rows"][2]["ppl"] is None


def test_rows_that_are_no_schemes_of_ours_are_explained(run):
    run.contenders[2].note, run.contenders[2].evicts = "attends to the newest 9", True
    run.contenders[3].note, run.contenders[3].bytes = "re-quantizes everything", None
    _, _, int4, kivi2 = body(run)
    assert (int4["scheme"], kivi2["bits"], kivi2["×"]) == ("int4 †", "not measurable", "–")
    lines = ["int4 † (changes what is attended): attends to the newest 9", "kivi2: re-quantizes everything"]
    rows = summary.summarize(run)
    assert run_tables.notes(rows) == lines
    assert run_tables.as_text(run, rows, 0, "md").endswith("\n\n".join(lines) + "\n")


def test_one_window(run):
    run.windows = run.windows[:1]
    assert body(run)[2]["ΔNLL [95 %]"] == "+0.1000"
    assert "1 window, prefix 29 + suffix 11 tokens, two-pass" in run_tables.heading(run)[1]


def test_the_heading_says_what_windows_share(run):
    assert "stride" not in run_tables.heading(run)[1]
    assert run_tables.heading(run)[-1] == (
        "windows begin 11 tokens apart: their prefixes overlap other windows, no token is scored twice"
    )
    run.settings.stride = 5
    assert "3 windows, stride 5, prefix 29 + suffix 11" in run_tables.heading(run)[1]
    assert "windows begin 5 tokens apart and score 10: tokens are scored twice" in run_tables.heading(run)[-1]
    run.settings.stride = 40
    assert not any("windows begin" in line for line in run_tables.heading(run))


def test_json_has_no_nan(run):
    run.windows = run.windows[:1]
    content = json.loads(run_tables.as_json(run, summary.summarize(run)), parse_constant=pytest.fail)
    assert content["rows"][2]["p"] is None
    assert content["baseline"] == "exact"


def test_a_bar_in_a_markdown_cell_is_no_column():
    line = tables.as_markdown(["measure", "ρ"], [["Σ|g·e|", "1"]]).splitlines()[2]
    assert line == r"| Σ\|g·e\| | 1 |"


def test_csv_and_markdown(run):
    rows = summary.summarize(run)
    read = list(csv.DictReader(io.StringIO(run_tables.as_csv(rows))))
    assert float(read[2]["delta_nll"]) == rows[2].delta_nll
    lines = tables.as_markdown(*run_tables.cells(rows)).splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_cost_matrix(run):
    rows = summary.summarize(run)
    header, lines = run_tables.cost_matrix({"K": {"4 bit": rows[2], "2 bit": rows[3]}})
    assert (header, lines) == (["", "4 bit", "2 bit"], [["K", "+0.2000 ± 0.0577", "+1.0000 ± 0.0000"]])


def test_layers_that_are_kept_are_named(run):
    assert not any(line.startswith("quantized") for line in run_tables.heading(run))
    run.layers = 6
    assert run_tables.heading(run)[-1] == "quantized: layers 0, 1 of 6; the others are kept as they are"


def test_p_values_are_not_printed_beyond_belief():
    assert [tables.chance(p) for p in (0.5, 0.0001, 1e-9, 0)] == ["0.5", "0.0001", "<0.0001", "<0.0001"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.00004, "0.0000"), (-0.00004, "0.0000"), (-0.00006, "-0.0001"), (1.5, "+1.5000")]
)
def test_no_sign_on_what_rounds_to_zero(value, text):
    assert tables.signed(value, 4) == text


@pytest.mark.parametrize("windows", [1, 3, 5, 6, 7, 8, 31, 32])
def test_few_windows_are_said_to_be_few(run, windows):
    """Under 8 there is no test of skewness; under 32 it often sees none where there is one: never is nothing said."""
    run.windows = [run.windows[0].model_copy(update={"index": i}) for i in range(windows)]
    said = [line for line in run_tables.heading(run) if line.startswith("only ")]
    assert len(said) == (windows < 8)
    assert (run_tables.UNSEEN in run_tables.legend(run)) == (8 <= windows < 32)


def test_a_skewed_row_has_the_p_of_a_test_that_needs_no_normal_differences(run):
    windows = [run.windows[0].model_copy(deep=True, update={"index": i}) for i in range(8)]
    for i, window in enumerate(windows):
        window.nll[2] = window.nll[0] + (50.0 if i == 3 else 0.1 * (i + 1))
    run.windows = windows
    rows = summary.summarize(run)
    (said,) = [line for line in run_tables.notes(rows) if "skewed" in line]
    assert said.endswith(f": int4 ({rows[2].skewness:.1f}; 0.0078)")  # 2/2^8: all differences are above 0
    shown = list(csv.DictReader(io.StringIO(run_tables.as_csv(rows))))
    assert [float(row["p_sign_flip"]) for row in shown] == [row.p_sign_flip for row in rows]
