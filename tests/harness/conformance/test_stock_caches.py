"""transformers' own caches: what they do, and what they do not."""

import importlib.util

import pytest
from packaging.version import Version
from transformers import __version__, cache_utils

from harness.conformance import checks
from harness.conformance.named import cache_named

DYNAMIC, STATIC = (f"harness.conformance.stock:{name}" for name in ("DynamicCache", "StaticCache"))
OLD = Version(__version__) < Version("5.23")
REFUSED = {"prompt lookup", "assisted decoding", "hybrid, sliding window", "hybrid, convolution"}
SHORT_OF = {"batch operations", "offload"}


def ended(name, ending):
    factory = cache_named(name)
    return {str(check) for check in checks if check(factory).ending == ending}


def test_dynamic_cache_passes_all():
    assert ended(DYNAMIC, "pass") == {str(check) for check in checks}


@pytest.mark.skipif(OLD, reason="an older transformers has another StaticCache")
def test_static_cache():
    assert ended(STATIC, "fail") == {"batch operations", "inference_mode before generate"}
    assert ended(STATIC, "refused") == set()


@pytest.mark.skipif(OLD, reason="an older transformers also has no reset and no beams there")
def test_hqq():
    assert ended("hf-hqq4", "fail") == {"crop", *SHORT_OF}
    assert ended("hf-hqq4", "refused") == REFUSED


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this transformers has no fp8 cache")
def test_fp8():
    assert ended("hf-fp8", "fail") == SHORT_OF
    assert ended("hf-fp8", "refused") == {"crop", *REFUSED}


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="optimum-quanto is not installed")
def test_quanto():
    assert ended("hf-quanto4", "fail") == {"crop", "deepcopy", *SHORT_OF}
    assert ended("hf-quanto4:axis=-1", "fail") == {"crop", "deepcopy", "lengths that do not divide", *SHORT_OF}


def test_a_cache_that_evicts_cannot_give_back():
    """All that it does not refuse it does."""
    assert ended("sink-window:tokens=100", "fail") == set()
    assert ended("sink-window:tokens=100", "refused") == {"crop", "prompt lookup", "assisted decoding"}


NAMED = {
    "nope:x": "^'nope:x': nope cannot be imported",
    "harness.conformance.stock:LONGEST": "has no callable 'LONGEST'",
    "int5": "no scheme 'int5'",
    f"{STATIC}(tokens=100)": "a cache for 100 tokens, and the checks put 384 into it",
    "operator:attrgetter": "gives no cache for a small Llama model: TypeError",
    "builtins:str": "gives a str, which is no cache: it has no update, no get_seq_length, no get_mask_sizes",
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_cache_is_said_before_it_is_tried(name, refused):
    with refused(NAMED[name]):
        cache_named(name)


MODULE = """
from transformers import DynamicCache
kept = DynamicCache()
def again(config): return kept
def leaves(config): raise SystemExit("bye")
"""


def test_factories_that_are_none(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poor_factories.py").write_text(MODULE)
    with refused("gives the same cache twice"):
        cache_named("poor_factories:again")
    with refused("gives no cache for a small Llama model: SystemExit: bye"):
        cache_named("poor_factories:leaves")
