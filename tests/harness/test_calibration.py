"""Calibration through a model: what is captured, what is written, and the cache that uses it."""

import copy
import json

import pytest
import torch
from transformers import DynamicCache

from analysis.measuring.errors import measure_errors
from harness.caches.rotary import rotary_of
from harness.caches.scheme import SchemeCache
from harness.calibration import calibrate
from harness.capture import pre_rope_keys
from harness.leaks import seen_text
from harness.protocols import prefill, suffix_logits
from harness.records.measurement import measured_arrays
from harness.subject.forward import cache_keyword, forward
from schemes import parse_scheme
from schemes.calibration_file import CalibrationFile, read


@pytest.fixture(scope="module")
def calibrated(model, tmp_path_factory):
    """A calibration of the tiny model on windows of its own, with squared gradients as weights."""
    from types import SimpleNamespace

    from harness.subject.model import LoadedModel
    from harness.subject.prepared import Subject
    from harness.subject.text import Text
    from harness.subject.windows import cut_windows

    tokens = torch.randint(1, 128, (900,), generator=torch.Generator().manual_seed(9))
    loaded = LoadedModel(model, SimpleNamespace(bos_token_id=None), "tiny", {"kind": "test"})
    windows = cut_windows(tokens, window_length=128, score_length=32, windows=4)
    subject = Subject(loaded, Text("train", "", {"kind": "test", "sha256": "2" * 64}), tokens, windows, None)
    notes: list[str] = []
    path = calibrate("kvquant:bits=4", subject, tmp_path_factory.mktemp("calibrated") / "tiny", on_note=notes.append)
    return path, subject, notes


def test_what_is_written(calibrated):
    path, subject, notes = calibrated
    assert path.name == "tiny.safetensors"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["text"] == seen_text(subject)
    assert (facts["tokens"], facts["bits"], facts["weights"], facts["layers"]) == (4 * 96, 4, "gradient", [0, 1])
    assert notes == [*(f"window {i}/4 captured" for i in range(1, 5)), "thresholds and levels of 2 layers"]
    tensors = read(CalibrationFile(str(path))).tensors
    for layer in (0, 1):
        assert tensors[f"{layer}.key.lower"].shape == (2, 16)
        assert (tensors[f"{layer}.key.lower"] < tensors[f"{layer}.key.upper"]).all()
        for side in ("key", "value"):
            levels = tensors[f"{layer}.{side}.levels"]
            assert len(levels) == 16
            assert (levels[1:] > levels[:-1]).all()


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
