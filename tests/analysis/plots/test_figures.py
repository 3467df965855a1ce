"""Which figures a record has."""

from kvdelta.analysis.plots import figures
from kvdelta.harness.records.run_folder import save_run


def test_a_run_in_which_nothing_was_read_has_no_figure_of_losses_and_says_so(run, tmp_path):
    """A single pass: every scheme has the exact loss, at fewer bits."""
    for window in run.windows:
        window.nll, window.kl = [20.0] * 4, [0.0] * 4
    run.audit.failures = {label: ["cache not read (key and value coverage 0)"] for label in ("int8", "int4", "kivi2")}
    save_run(run, tmp_path)
    notes = []
    assert figures.draw(tmp_path, on_note=notes.append) == []
    assert notes[0] == f"{tmp_path}: left out (cache not read): int8, int4, kivi2"
    assert "no figure of losses" in notes[1]


def test_what_is_left_out_of_a_figure_is_said(run, tmp_path):
    run.contenders[2].error = "RuntimeError: no more"
    save_run(run, tmp_path)
    notes = []
    assert {path.stem for path in figures.draw(tmp_path, on_note=notes.append)} == {"bits-against-loss"}
    assert notes == [f"{tmp_path}: left out (failed): int4"]
