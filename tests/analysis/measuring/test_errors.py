"""Errors measured on a tiny model, against what the model itself computes over the quantized cache."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
from kvdelta.analysis.reading import error_measures as measures
from kvdelta.analysis.reading.ablations import additivity_rows, layer_rows
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.comparison import compare
from kvdelta.harness.protocols import prefill
from kvdelta.harness.records.measurement import measured_arrays, save_measurement
from kvdelta.harness.subject.forward import forward
from kvdelta.schemes import parse_scheme

SPECS = ["exact", "int8:group_size=16", "asym2:group_size=16", "asym2:key_axis=channel,group_size=16"]


@pytest.fixture
def errors(subject, options):
    record, folder = measure_errors(SPECS, options, subject)
    return record, measured_arrays(folder, record)


def test_the_identity_scheme_has_no_error_anywhere(errors):
    record, arrays = errors
    at = record.labels.index("exact")
    for name, array in arrays.items():
        if any(word in name for word in ("error2", "max", "kl", "square", "absolute")):
            assert not array[:, at].any(), name
            assert array[:, 2].any(), name
    figures = measures.by_head(arrays)
    for name in measures.MEASURES:
        assert (figures[name][at] == 0).all(), name
    assert np.isposinf(figures["key_sqnr"][at]).all()


def test_shapes_and_labels(errors):
    record, arrays = errors
    assert record.labels == SPECS
    assert (record.measured_layers, record.kv_heads) == ([0, 1], [0, 1])
    assert {array.shape for array in arrays.values()} == {(3, 4, 2, 2)}  # windows, schemes, layers, KV heads


def test_first_layer_against_the_models_own_attention(errors, subject, model):
    """Below layer 0 nothing is quantized: its queries over a quantized cache are the exact ones, so that the model
    itself gives attention and output with both sides quantized, per KV head of two query heads."""
    _, arrays = errors
    spec, window = SPECS[2], subject.windows[1]
    model.set_attn_implementation("eager")
    prefilled = prefill(model, window.prefix)
    found = {}
    for name in ("exact", spec):
        cache = SchemeCache(parse_scheme(name), model.config).fill(prefilled)
        outputs = []
        hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda module, given, outputs=outputs: outputs.append(given[0])
        )
        with torch.inference_mode():
            scores = forward(model, window.suffix, cache, output_attentions=True).attentions[0]
        hook.remove()
        found[name] = scores[0].double(), outputs[0][0].double().view(32, 4, 16)
    model.set_attn_implementation("sdpa")
    (p, exact), (q, other) = found["exact"], found[spec]
    for head in (0, 1):
        pair = slice(2 * head, 2 * head + 2)
        sums = {name: array[1, 2, 0, head] for name, array in arrays.items()}
        output = (other - exact)[:, pair].square().sum() / exact[:, pair].square().sum()
        assert sums["output_error2_both"] / sums["output_norm2"] == pytest.approx(float(output), rel=1e-4)
        score = (q - p)[pair].square().sum() / p[pair].square().sum()
        assert sums["score_error2"] / sums["score_norm2"] == pytest.approx(float(score), rel=1e-4)
        kl = torch.where(p > 0, p * (p / q).log(), 0.0)[pair].sum(dim=-1).mean()
        assert sums["attention_kl"] / sums["rows"] == pytest.approx(float(kl), rel=1e-4)


def test_the_same_settings_are_not_measured_again(errors, subject, options):
    said = []
    measure_errors(SPECS, options, subject, on_note=said.append)
    assert "complete" in said[0]
    with pytest.raises(ValueError, match="differs in contenders, measured"):
        measure_errors(SPECS[:2], options, subject, layers=[1])


def test_an_interrupted_measurement_goes_on(subject, options, errors):
    record, arrays = errors
    folder = Path(options.out)
    record.status = "running"
    save_measurement(record, folder)
    first, *_ = sorted((folder / "errors").iterdir())
    kept = sorted((folder / "errors").iterdir())[1].stat().st_mtime_ns
    first.unlink()
    again, _ = measure_errors(SPECS, options, subject)
    assert again.status == "complete"
    assert sorted((folder / "errors").iterdir())[1].stat().st_mtime_ns == kept
    for name, array in measured_arrays(folder, again).items():
        assert np.array_equal(array, arrays[name])


def test_bad_input(subject, options, refused):
    with refused("layer 5 does not exist.*there are 0-1"):
        measure_errors(SPECS, options, subject, layers=[0, 5])
    with refused("scheme exact keeps keys of layers 0-1 exact, so there is nothing to measure"):
        measure_sensitivity(["exact"], options, subject)
    with refused("a prefix of 96 tokens would leave every key exact"):
        measure_errors(["kivi2:group_size=8"], options, subject)
    with refused("side 'keys': choose key, value, both"):
        measure_sensitivity(["int8:group_size=16"], options, subject, sides=["keys"])


def test_attention_that_is_more_than_its_parts_is_refused(subject, options, model, monkeypatch, refused):
    """A model whose attention does something else to the scores (sinks, biases) must not get wrong figures."""
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def other(*args, **kwargs):
        output, weights = sdpa_attention.sdpa_attention_forward(*args, **kwargs)
        return output * 0.9, weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", other)
    with refused("layer 0 of tiny attends in a way.*cannot be captured"):
        measure_errors(SPECS, options, subject)


def test_equal_schemes_are_measured_once(subject, options):
    said = []
    record, _ = measure_errors([SPECS[1], "symmetric:bits=8,group_size=16"], options, subject, on_note=said.append)
    assert record.labels == SPECS[1:2]
    assert "is the same scheme as int8:group_size=16" in said[0]


def test_a_side_that_a_scheme_keeps_exact_has_no_sensitivity(subject, options, tmp_path, refused):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"default": "exact", "layers": {"1": {"key": SPECS[2], "value": "exact"}}}))
    with refused("keeps keys of layers 0 exact"):
        measure_sensitivity([f"@{path}"], options, subject, sides=["key"])
    with refused("keeps values of layers 1 exact"):
        measure_sensitivity([f"@{path}"], options, subject, sides=["value"], layers=[1])
    record, folder = measure_sensitivity([f"@{path}"], options, subject, sides=["key"], layers=[1])
    arrays = measured_arrays(folder, record)
    assert (arrays["kl"] > 0).all()
    assert np.array_equal(arrays["nll"][:, :, :, 0], arrays["all_nll"])  # it is the only quantized layer


@pytest.fixture
def sensitivity(subject, options, tmp_path):
    record, folder = measure_sensitivity(
        SPECS[2:3], replace(options, out=str(tmp_path / "ablation")), subject, sides=["key", "value", "both"]
    )
    return record, measured_arrays(folder, record)


def test_a_row_is_the_run_of_a_scheme_that_is_exact_elsewhere(sensitivity, subject, options, tmp_path):
    _, arrays = sensitivity
    for layer in (0, 1):
        for j, side in enumerate(("key", "value", "both")):
            half = {"key": "exact", "value": "exact", **{s: SPECS[2] for s in ("key", "value") if side in (s, "both")}}
            path = tmp_path / f"{layer}-{side}.json"
            path.write_text(json.dumps({"default": "exact", "layers": {str(layer): half}}))
            run, _ = compare([f"@{path}"], replace(options, out=str(tmp_path / f"run-{layer}-{side}")), subject=subject)
            assert [window.nll[1] for window in run.windows] == list(arrays["nll"][:, 0, j, layer])
            assert [window.kl[1] for window in run.windows] == list(arrays["kl"][:, 0, j, layer])
            assert [window.nll[0] for window in run.windows] == list(arrays["exact_nll"])


def test_all_layers_at_once_is_the_scheme_itself(sensitivity, subject, options, tmp_path):
    _, arrays = sensitivity
    run, _ = compare(SPECS[2:3], replace(options, out=str(tmp_path / "all")), subject=subject)
    assert [window.nll[1] for window in run.windows] == list(arrays["all_nll"][:, 0, 2])
    assert [window.kl[1] for window in run.windows] == list(arrays["all_kl"][:, 0, 2])


def test_rows_of_a_sensitivity_record(sensitivity, errors):
    record, arrays = sensitivity
    rows = layer_rows(record, arrays)
    assert [(row.side, row.layer) for row in rows] == [(s, i) for s in ("key", "value", "both") for i in (0, 1)]
    assert all(row.read and row.kl > 0 and row.delta_nll_low <= row.delta_nll for row in rows)
    for row in additivity_rows(record, arrays):
        mine = [r for r in rows if r.side == row.side]
        assert row.sum_delta_nll == pytest.approx(sum(r.delta_nll for r in mine))
        assert row.difference == pytest.approx(row.sum_delta_nll - row.all_delta_nll)
        assert row.difference_low <= row.difference <= row.difference_high
    figures = measures.by_layer(errors[1])  # the predicted loss is the same wherever it is measured
    for row in rows:
        name = {"key": "key_square", "value": "value_square", "both": "square"}[row.side]
        assert row.square == pytest.approx(figures[name][2, row.layer], rel=1e-6)
