"""A model whose layers lie on several devices is scored as one that lies on one."""

import copy
from dataclasses import replace

import pytest
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from kvdelta.harness.comparison import compare
from kvdelta.harness.options import Options
from kvdelta.harness.subject.model import load_model
from kvdelta.harness.subject.prepared import prepare

SPECS = ["int8:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", "hf-hqq:bits=4,axis=1"]


@pytest.fixture
def spread(subject, tmp_path):
    """The subject with its second layer on the disk: what moves tensors between GPUs does so here."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    model = dispatch_model(
        copy.deepcopy(subject.loaded.model),
        {**places, "model.rotary_emb": "cpu", "lm_head": "cpu"},
        main_device="cpu",
        offload_dir=tmp_path / "offloaded",
    )
    return replace(subject, loaded=replace(subject.loaded, model=model))


def test_a_spread_model_has_the_sums_of_one_device(subject, spread, options):
    assert {parameter.device.type for parameter in spread.loaded.model.parameters()} == {"cpu", "meta"}
    options = replace(options, batch="2")
    whole, _ = compare(SPECS, options, subject=subject)
    run, _ = compare(SPECS, replace(options, out=f"{options.out}-spread"), subject=spread)
    assert (run.windows, run.audit, run.noise_floor) == (whole.windows, whole.audit, whole.noise_floor)


def test_the_map_reaches_transformers_which_places_the_weights(files, monkeypatch):
    asked, load = [], AutoModelForCausalLM.from_pretrained

    def spy(*args, **given):
        asked.append(given.pop("device_map", None))
        model, report = load(*args, **given)
        model.to = None  # not to be called where a map says where weights lie
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    load_model(str(files / "model"), device_map="auto")
    assert asked == ["auto"]
    with pytest.raises(TypeError):
        load_model(str(files / "model"))


def test_one_process_is_enough_for_all_gpus(monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("device_map spreads a model over all GPUs"):
        prepare(Options(device_map="auto"))
