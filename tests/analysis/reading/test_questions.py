"""What is related to what: records that join, and those that do not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.reading import agreement, questions
from kvdelta.analysis.reading.joined import check_joins, gather
from kvdelta.analysis.reading.questions import questions_of
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.hashes import hashed

from ..rows import GRID


def test_schemes_of_a_comparison(folders):
    joined = gather([folders["errors"], folders["run"]])
    check_joins(joined)
    (question,) = questions_of(joined)
    assert question.title == "all layers at once, 8 schemes"
    everything = np.arange(question.windows)
    _, kl, delta = question.draw(everything)
    run = joined.runs[0][1]
    counts = sum(window.count for window in run.windows)
    assert kl[3] == pytest.approx(sum(window.kl[4] for window in run.windows) / counts)
    assert delta[3] == pytest.approx(sum(window.nll[4] - window.nll[0] for window in run.windows) / counts)
    rows = {row.measure: row for row in agreement.ranking(question)}
    assert rows["key_error"].pairs == 12  # two sets of four schemes with equal bits
    assert rows["square"].spearman_kl > 0.5


def test_windows_pair_by_their_place_in_the_text(folders):
    """A run that stops when it is known scores them in another order, and perhaps not all."""
    joined = gather([folders["errors"], folders["run"]])
    run = joined.runs[0][1]
    one_window = [question.draw(np.array([2]))[1] for question in questions_of(joined)]
    run.windows = run.windows[::-1]
    check_joins(joined)
    again = [question.draw(np.array([2]))[1] for question in questions_of(joined)]
    assert np.array_equal(one_window, again)
    run.windows = run.windows[:2]
    with pytest.raises(ValueError, match=r"do not join: windows is 2 .* there and 3"):
        check_joins(joined)


def test_layers_of_an_ablation(folders, monkeypatch):
    monkeypatch.setattr(questions, "LEAST_POINTS", 2)  # a tiny model has two layers
    joined = gather([folders["errors"], folders["ablation"]])
    keys, values = questions_of(joined)
    assert "keys of one layer at a time" in keys.title
    assert "value_error" not in keys.measures
    assert "key_error" in keys.measures
    assert "key_error" not in values.measures
    assert "output_value" in values.measures
    arrays = joined.sensitivity[0][2]
    kl, delta = values.draw(np.array([0, 2]))[1:]
    assert kl == pytest.approx(arrays["kl"][[0, 2], 0, 1].sum(axis=0) / arrays["count"][[0, 2]].sum())
    expected = (arrays["nll"][[0, 2], 0, 1] - arrays["exact_nll"][[0, 2], None]).sum(axis=0)
    assert delta == pytest.approx(expected / arrays["count"][[0, 2]].sum())


def test_rows_that_cannot_be_believed_are_related_to_nothing(folders):
    joined = gather([folders["errors"], folders["run"]])
    run = joined.runs[0][1]
    run.audit.failures = {GRID[0]: ["cache not read (key coverage 0)"]}
    run.contenders[3].error = "RuntimeError: no more"
    for window in run.windows:
        window.nll[3] = window.kl[3] = window.probability[3] = float("nan")
    (question,) = questions_of(joined)
    assert question.points == [GRID[1], *GRID[3:]]
    assert question.left_out == f"left out (cache not read): {GRID[0]}; left out (failed): {GRID[2]}"
    measured, kl, _ = question.draw(np.arange(question.windows))
    assert measured.shape[1] == len(kl) == len(question.bits) == 6
    for contender in run.contenders[4:7]:
        contender.error = "RuntimeError: no more"
    with pytest.raises(ValueError, match=r"nothing to relate.*left out \(cache not read\)"):
        questions_of(joined)


def test_layers_whose_cache_was_not_read_are_related_to_nothing(folders, monkeypatch):
    monkeypatch.setattr(questions, "LEAST_POINTS", 1)
    joined = gather([folders["errors"], folders["ablation"]])
    joined.sensitivity[0][2]["kl"][:, 0, 1, 0] = 0
    keys, values = questions_of(joined)
    assert (keys.points, keys.left_out) == (["0", "1"], "")
    assert (values.points, values.left_out) == (["1"], "left out (cache not read): layer 0")
    assert values.draw(np.arange(3))[0].shape[1] == 1


def edited(folder, **changes):
    path = Path(folder) / "errors.json"
    content = json.loads(path.read_text())
    content["settings"] |= changes
    path.write_text(json.dumps(hashed(content)))


def refusal(folders, names=("run", "errors")):
    def relate():
        joined = gather([folders[name] for name in names])
        check_joins(joined)
        questions_of(joined)

    with pytest.raises(ValueError, match=r"record|join|window|relate|complete") as error:
        relate()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"protocol": "stepwise"}, "protocol is two-pass there and stepwise here"),
        ({"model": {"kind": "hub", "id": "other"}}, "model is .*test.* there and other here"),
        ({"text_sha256": "0"}, "text_sha256"),
        ({"dtype": "float16"}, "dtype is float32 there and float16 here"),
    ],
)
def test_records_of_different_things_do_not_join(folders, changes, differs):
    edited(folders["errors"], **changes)
    said = refusal(folders)
    assert folders["run"] in said
    assert folders["errors"] in said
    assert re.search(differs, said), said


def test_records_of_different_windows_do_not_join(folders, subject, options, tmp_path):
    folders["other"] = str(tmp_path / "other")
    fewer = replace(subject, windows=subject.windows[:2])
    compare(GRID[:1], replace(options, windows=2, out=folders["other"]), subject=fewer)
    assert "windows is 2" in refusal(folders, ("other", "errors"))


def test_one_window_is_too_few(subject, options, tmp_path):
    one = replace(subject, windows=subject.windows[:1])
    folders = {name: str(tmp_path / name) for name in ("errors", "run")}
    measure_errors(GRID, replace(options, out=folders["errors"]), one)
    compare(GRID, replace(options, out=folders["run"]), subject=one)
    assert "has 1 window; agreement needs an interval, and an interval at least 2 windows" in refusal(folders)


def test_nothing_to_relate(folders, tmp_path):
    assert "there is no errors record" in refusal(folders, ("run", "ablation"))
    assert "nothing to relate: no ablation and no comparison" in refusal(folders, ("errors",))
    with pytest.raises(ValueError, match="holds no record: none of run"):
        gather([tmp_path])
    path = Path(folders["errors"]) / "errors.json"
    path.write_text(json.dumps(hashed({**json.loads(path.read_text()), "status": "running"})))
    assert "is not complete; give its command again" in refusal(folders)
