"""Our cache, with schemes of every kind, does all that transformers asks of one."""

import json

import pytest

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.conformance import checks
from kvdelta.harness.conformance.models import model_of
from kvdelta.schemes import parse_scheme

SCHEMES = [
    "exact",
    "int4",
    "kivi2:layers=all",
    "hqq4",
    "hadamard(asym2)",
    "matched(kivi2):tail=8,sinks=4",
    "@map.json",
]


@pytest.fixture(autouse=True)
def layer_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.json").write_text(json.dumps({"layers": {"1": "int8"}, "default": "kivi2"}))


@pytest.mark.parametrize("spec", SCHEMES)
@pytest.mark.parametrize("check", checks, ids=str)
def test_scheme_cache(check, spec):
    assert check(lambda config: SchemeCache.for_model(parse_scheme(spec), model_of(config))).passed


@pytest.mark.parametrize("spec", ["kivi2:layers=all", "int4"])
@pytest.mark.parametrize("check", checks, ids=str)
def test_a_mirrored_cache(check, spec):
    assert check(lambda config: SchemeCache.for_model(parse_scheme(spec), model_of(config), mirrored=True)).passed


def test_a_scheme_of_sliding_layers_alone():
    """Only a model that has some can be asked."""
    (hybrid,) = [check for check in checks if check.name == "hybrid, sliding window"]
    outcome = hybrid(lambda config: SchemeCache.for_model(parse_scheme("kivi2:layers=sliding"), model_of(config)))
    assert outcome.ending == "pass", outcome.why
