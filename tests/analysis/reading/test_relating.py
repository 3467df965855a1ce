"""Which measure told? On questions whose answer is planted, and on records that do or do not belong together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.measuring.errors import measure_errors
from analysis.measuring.sensitivity import measure_sensitivity
from analysis.reading import agreement, joining, relating
from harness.comparison import compare

MEASURES = ["key_error", "attention_kl", "output_key"]


def planted(points=30, windows=8, noise=0.1):
    """key_error has nothing to do with the KL, attention_kl is its cube root, output_key ranks the wrong way round."""
    rng = np.random.default_rng(0)
    true = np.exp(rng.normal(size=points))
    unrelated = np.exp(rng.normal(size=points))
    each = true * np.exp(noise * rng.normal(size=(windows, points)))

    def draw(at):
        kl = each[at].mean(axis=0)
        return np.stack([unrelated, true ** (1 / 3), 1 / true]), kl, kl - 0.5

    labels = [str(i) for i in range(points)]
    return agreement.Question("planted", labels, ["a"] * points, MEASURES, windows, draw, [4.0] * points)


def test_planted_ranking():
    rows = {row.measure: row for row in agreement.ranking(planted())}
    assert list(rows) == ["attention_kl", "key_error", "output_key"]
    good, unrelated, reversed_ = rows["attention_kl"], rows["key_error"], rows["output_key"]
    assert good.spearman_kl > 0.98
    assert good.pearson_kl == pytest.approx(1, abs=0.02)  # a power law is a line in log–log
    assert good.spearman_kl == good.spearman_delta
    assert not good.wrong
    assert not good.worse
    assert unrelated.spearman_kl_low < 0 < unrelated.spearman_kl_high
    assert not unrelated.wrong  # its interval does not exclude agreement
    assert unrelated.worse
    assert reversed_.spearman_kl_high < -0.9
    assert reversed_.wrong
    assert reversed_.worse
    assert good.pairs == 30 * 29 // 2
    assert good.right > 0.95 * good.pairs > good.pairs / 2 > reversed_.right


def test_the_interval_is_wider_with_fewer_points():
    few, many = ({row.measure: row for row in agreement.ranking(planted(points))}["key_error"] for points in (8, 60))
    width = [row.spearman_kl_high - row.spearman_kl_low for row in (few, many)]
    assert width[0] > 1.5 * width[1]


def test_windows_agree_with_each_other():
    assert agreement.agreement_of_windows(planted(noise=0.01)) > 0.99
    assert agreement.agreement_of_windows(planted(noise=5.0)) < 0.8
    assert np.isnan(agreement.agreement_of_windows(planted(windows=1)))


def test_correlation_against_scipy():
    from scipy import stats

    x, y = np.random.default_rng(1).normal(size=(2, 3, 12))
    found = agreement._correlation(agreement._ranks(x), agreement._ranks(y[0]))
    assert found == pytest.approx([stats.spearmanr(row, y[0]).statistic for row in x])
    x[0, 3] = np.nan
    kept = np.arange(12) != 3
    assert agreement._correlation(x, y[0])[0] == pytest.approx(stats.pearsonr(x[0, kept], y[0, kept]).statistic)


GRID = [f"asym{bits}:key_axis={k},value_axis={v},group_size=16" for bits in (2, 4) for k in ("token", "channel") for v in ("token", "channel")]  # fmt: skip


@pytest.fixture
def folders(subject, options, tmp_path):
    """Errors, an ablation and a comparison of the same windows."""
    places = {name: str(tmp_path / name) for name in ("errors", "ablation", "run")}
    measure_errors(GRID, replace(options, out=places["errors"]), subject)
    measure_sensitivity(GRID[:1], replace(options, out=places["ablation"]), subject)
    compare(GRID, replace(options, out=places["run"]), subject=subject)
    return places


def test_schemes_of_a_comparison(folders):
    joined = joining.gather([folders["errors"], folders["run"]])
    joining.check_joins(joined)
    (question,) = relating.questions(joined)
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


def test_layers_of_an_ablation(folders, monkeypatch):
    monkeypatch.setattr(relating, "LEAST_POINTS", 2)  # a tiny model has two layers
    joined = joining.gather([folders["errors"], folders["ablation"]])
    keys, values = relating.questions(joined)
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


def test_the_worked_example_is_found_in_the_records(folders):
    """Of schemes with equal keys and bits: values no worse, and more KL."""
    joined = joining.gather([folders["errors"], folders["run"]])
    _, record, arrays = joined.errors[0]
    names = record.settings.contenders
    at = {value: names.index(f"asymmetric:bits=2{value},group_size=16") for value in ("", ",value_axis=channel")}
    for name, array in arrays.items():  # plant it
        if name == "value_error2":
            array[:, at[",value_axis=channel"]] = 0.9 * array[:, at[""]]
            array[:, [i for i in range(8) if i not in at.values()]] = np.arange(1, 7)[None, :, None, None] * 1e6
    run = joined.runs[0][1]
    for window in run.windows:
        window.kl = [0.0, *(10.0 if i == at[",value_axis=channel"] else 1.0 + 0.001 * i for i in range(8))]
    said = relating.worked_example(joined)
    assert said is not None
    assert f"{GRID[1]} and {GRID[0]} have the same keys" in said


def edited(folder, **changes):
    path = Path(folder) / "errors.json"
    content = json.loads(path.read_text())
    content["settings"] |= changes
    path.write_text(json.dumps(content))


def refusal(folders, names=("run", "errors")):
    def relate():
        joined = joining.gather([folders[name] for name in names])
        joining.check_joins(joined)
        relating.questions(joined)

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
    import re

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
        joining.gather([tmp_path])
    path = Path(folders["errors"]) / "errors.json"
    path.write_text(path.read_text().replace('"complete"', '"running"'))
    assert "is not complete; give its command again" in refusal(folders)
