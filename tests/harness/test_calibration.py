"""Calibration through a model: what is captured, what is written, and the cache that uses it."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.harness.caches.rotary import rotary_of
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.calibration import calibrate
from kvdelta.harness.capture import pre_rope_keys, suffix_gradients
from kvdelta.harness.leaks import seen_text
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.records.measurement import measured_arrays
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.text import Text
from kvdelta.harness.subject.windows import Batch, cut_windows
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.calibration_file import CalibrationFile, read
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.families import kvquant


@pytest.fixture(scope="module")
def training(model):
    """The tiny model and four windows to calibrate on."""
    tokens = torch.randint(1, 128, (900,), generator=torch.Generator().manual_seed(9))
    loaded = LoadedModel(model, SimpleNamespace(bos_token_id=None), "tiny", {"kind": "test"})
    windows = cut_windows(tokens, window_length=128, score_length=32, windows=4)
    return Subject(loaded, Text("train", "", {"kind": "test", "sha256": "2" * 64}), tokens, windows, None)


@pytest.fixture(scope="module")
def calibrated(training, tmp_path_factory):
    """A calibration of the tiny model on windows of its own, with squared gradients as weights."""
    notes: list[str] = []
    path = calibrate("kvquant:bits=4", training, tmp_path_factory.mktemp("calibrated") / "tiny", on_note=notes.append)
    return path, training, notes


def test_what_is_written(calibrated):
    path, subject, notes = calibrated
    assert path.name == "tiny.safetensors"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["text"] == seen_text(subject)
    assert (facts["tokens"], facts["bits"], facts["weights"], facts["layers"]) == (4 * 95, 4, "gradient", [0, 1])
    assert facts["sink_tokens"] == 1
    assert notes == [*(f"window {i}/4 captured" for i in range(1, 5)), "thresholds and levels of 2 layers"]
    tensors = read(CalibrationFile(str(path))).tensors
    for layer in (0, 1):
        assert tensors[f"{layer}.key.lower"].shape == (2, 16)
        assert (tensors[f"{layer}.key.lower"] < tensors[f"{layer}.key.upper"]).all()
        for side in ("key", "value"):
            levels = tensors[f"{layer}.{side}.levels"]
            assert len(levels) == 16
            assert (levels[1:] > levels[:-1]).all()


RULES = [("kvquant:bits=3", 1), ("kvquant:bits=3,first_exact=5", 5), ("kvquant:bits=3,sink_tokens=5", 5),
         ("kvquant:bits=3,first_exact=0", 0)]  # fmt: skip


@pytest.mark.parametrize("weights", ["gradient", "one"])
@pytest.mark.parametrize(("spec", "sinks"), RULES)
def test_tokens_that_stay_exact_are_not_calibrated_on(spec, sinks, weights, training, model, tmp_path):
    """Neither their numbers nor their weights enter a table, whichever field of the spec keeps them exact."""
    path = calibrate(spec, training, tmp_path / "out", weights)
    captured = {"samples": {"key": [], "value": []}, "weights": {"key": [], "value": []}}
    for window in training.windows:
        prefilled = prefill(model, window.prefix)
        cached = {"key": pre_rope_keys(model, 1, prefilled.layers[1].keys), "value": prefilled.layers[1].values}
        gradients = suffix_gradients(model, Batch((window,)), prefilled)[1]
        gradients["key"] = rotary_of(model, 1).unrotate(gradients["key"], 0)
        for side, numbers in cached.items():
            captured["samples"][side].append(numbers[0, :, sinks:])
            weight = gradients[side].square() if weights == "gradient" else torch.ones_like(numbers)
            captured["weights"][side].append(weight[0, :, sinks:])
    joined = {
        what: {side: torch.cat(pieces, dim=1) for side, pieces in sides.items()} for what, sides in captured.items()
    }
    expected = kvquant.calibrate(1, **joined, fields={"bits": 3, "outliers": 0.01})
    written = read(CalibrationFile(str(path)))
    assert len(expected) == 4
    assert all(torch.equal(written.tensors[name], table) for name, table in expected.items())
    assert written.facts["tokens"] == 4 * (96 - sinks)


def test_windows_of_sinks_alone(training, tmp_path):
    with pytest.raises(UserError, match=r"keeps the first 96 tokens exact, all 96 of a prefix: .*longer windows"):
        calibrate("kvquant:bits=3,sink_tokens=96", training, tmp_path / "out")


@pytest.mark.parametrize("rule", ["first_exact=2", "sink_tokens=2"])
def test_a_calibration_on_tokens_that_stay_exact_is_refused(rule, calibrated, model):
    """More exact tokens than were left out: the tables would be fitted to what is never quantized. Fewer fit."""
    path, _, _ = calibrated
    with pytest.raises(UserError, match=r"leaves out 1 first token .*keeps 2 exact.*make one with kvdelta calibrate"):
        SchemeCache.for_model(parse_scheme(f"kvquant:bits=4,{rule},calibration={path}"), model)
    SchemeCache.for_model(parse_scheme(f"kvquant:bits=4,{rule.replace('2', '0')},calibration={path}"), model)


def test_thresholds_are_quantiles_of_the_models_own_keys(calibrated, model):
    """1 % of the captured keys lie outside, and the keys are those before the model's rotation."""
    path, subject, _ = calibrated
    tensors = read(CalibrationFile(str(path))).tensors
    seen = []
    hook = model.model.layers[1].self_attn.k_proj.register_forward_hook(lambda m, i, out: seen.append(out))
    try:
        for window in subject.windows:
            prefill(model, window.prefix)
    finally:
        hook.remove()
    keys = torch.cat(seen, dim=1).view(-1, 2, 16)
    outside = (keys < tensors["1.key.lower"]) | (keys > tensors["1.key.upper"])
    assert outside.float().mean() == pytest.approx(0.01, abs=0.005)


def test_a_cache_that_uses_it(calibrated, model, tokens):
    """4 bits stay near exact, far from a cache of noise, and live filling equals filling from a prefill."""
    path, _, _ = calibrated
    scheme = parse_scheme(f"kvquant:bits=4,calibration={path}")
    prefix, suffix = tokens[None, :96], tokens[None, 96:128]
    prefilled = prefill(model, prefix)
    caches = [SchemeCache.for_model(scheme, model) for _ in range(2)]
    caches[0].fill(prefilled)
    with torch.inference_mode():
        forward(model, prefix, caches[1])
    filled, live = (suffix_logits(model, cache, suffix) for cache in caches)
    assert torch.equal(filled, live)
    exact = suffix_logits(model, copy.deepcopy(prefilled), suffix)
    coarse = SchemeCache.for_model(parse_scheme("asym1"), model).fill(prefilled)
    errors = [(logits - exact).norm() / exact.norm() for logits in (filled, suffix_logits(model, coarse, suffix))]
    assert 0 < errors[0] < 0.4 * errors[1]
    generated = model.generate(
        prefix, **{cache_keyword(model): SchemeCache.for_model(scheme, model)}, max_new_tokens=4, do_sample=False
    )
    assert generated.shape == (1, 100)


def test_without_the_model_it_says_what_to_do(calibrated, model):
    path, _, _ = calibrated
    with pytest.raises(ValueError, match=r"use SchemeCache\.for_model"):
        SchemeCache(parse_scheme(f"kvquant:bits=4,calibration={path}"), model.config)


@pytest.mark.parametrize("start", [0, 5])
def test_rotating_back_gives_the_models_own_keys(model, tokens, start):
    """At any position: what the projection gave before the rotation, from what the cache holds after it."""
    seen = []
    hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda m, i, out: seen.append(out))
    try:
        prefilled = prefill(model, tokens[None, :64])
    finally:
        hook.remove()
    cached = prefilled.layers[0].keys[:, :, start:]
    own = seen[0].view(1, 64, 2, 16).transpose(1, 2)[:, :, start:]
    rotary = rotary_of(model, 0)
    assert torch.allclose(rotary.unrotate(cached, start), own, atol=1e-5)
    assert torch.allclose(rotary.rotate(own, start), cached, atol=1e-5)
    if start == 0:
        assert torch.allclose(pre_rope_keys(model, 0, cached), own, atol=1e-5)


@pytest.mark.parametrize("spec", ["int4", "hadamard(asym4)"])
def test_what_needs_no_calibration(spec, subject, tmp_path):
    with pytest.raises(
        ValueError, match=f"scheme {spec!r}".replace("(", r"\(").replace(")", r"\)") + " needs no calibration"
    ):
        calibrate(spec, subject, tmp_path / "x")


def test_the_analyzer_measures_bound_schemes(calibrated, subject, options):
    """kvquant has its tables, and a last layer that is exact has no error."""
    path, _, _ = calibrated
    specs = [f"kvquant:bits=4,calibration={path}", "int4:group_size=16,exact_last_layers=1"]
    record, folder = measure_errors(specs, options, subject)
    assert record.labels == specs
    squared = measured_arrays(folder, record)["key_error2"]  # windows, schemes, layers, heads
    assert (squared[:, 0] > 0).all()
    assert (squared[:, 1, 0] > 0).all()
    assert (squared[:, 1, 1] == 0).all()


def test_first_and_last_layers_exact(model, tokens):
    """exact_first_layers and exact_last_layers name layers from both ends; too many are refused."""
    prefilled = prefill(model, tokens[None, :64])
    cache = SchemeCache(parse_scheme("int2:exact_last_layers=1"), model.config).fill(prefilled)
    same = [torch.equal(store.read(), getattr(prefilled.layers[i], side + "s")) for i, side, store in cache.stores()]
    assert same == [False, False, True, True]
    cache = SchemeCache(parse_scheme("int2:exact_first_layers=1,only=key"), model.config).fill(prefilled)
    same = [torch.equal(store.read(), getattr(prefilled.layers[i], side + "s")) for i, side, store in cache.stores()]
    assert same == [True, True, False, True]
    with pytest.raises(ValueError, match="leaves all 2 layers of the model exact"):
        SchemeCache(parse_scheme("int2:exact_first_layers=1,exact_last_layers=1"), model.config)
    with pytest.raises(ValueError, match="a number of layers is not negative"):
        parse_scheme("int2:exact_first_layers=-1")
    assert isinstance(prefilled, DynamicCache)
