"""transformers' own caches: what they do, and what they do not."""

import importlib.util

import pytest
from packaging.version import Version
from transformers import __version__

from kvdelta.harness.conformance import checks
from kvdelta.harness.conformance.named import cache_named

installed = Version(__version__)
newest = pytest.mark.skipif(installed < Version("5.24"), reason="before 5.24 some more of it is broken")
REFUSED = {"prompt lookup", "assisted decoding", "hybrid, sliding window", "hybrid, convolution"}
SHORT_OF = {"batch operations", "offload"}


def ended(name, ending):
    factory = cache_named(name)
    return {str(check) for check in checks if check(factory).ending == ending}


def test_dynamic_cache():
    """Passes all; 5.17 leaves zeros where tokens were, and their length."""
    broken = {"reset", "memory held"} if installed < Version("5.23") else set()
    assert ended("DynamicCache", "pass") == {str(check) for check in checks} - broken


@newest
def test_static_cache():
    assert ended("StaticCache", "fail") == {"batch operations", "inference_mode before generate"}
    assert ended("StaticCache", "refused") == set()


@newest
def test_hqq():
    assert ended("hf-hqq4", "fail") == {"crop", *SHORT_OF}
    assert ended("hf-hqq4", "refused") == REFUSED


@newest
def test_fp8():
    assert ended("hf-fp8", "fail") == SHORT_OF
    assert ended("hf-fp8", "refused") == {"crop", *REFUSED}


@newest
@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="optimum-quanto is not installed")
def test_quanto():
    assert ended("hf-quanto4", "fail") == {"crop", "deepcopy", *SHORT_OF}
    assert ended("hf-quanto4:axis=-1", "fail") == {"crop", "deepcopy", "lengths that do not divide", *SHORT_OF}


@pytest.mark.parametrize("name", ["sink-window:tokens=100", "sink-window:sinks=4,bits=4", "sliding-window:bits=2"])
def test_a_cache_that_evicts_cannot_give_back(name):
    """All that it does not refuse it does; where bits are given and the first forward has one token, few are kept beside the sinks."""
    assert ended(name, "fail") == set()
    assert ended(name, "refused") == {"crop", "prompt lookup", "assisted decoding"}


NAMED = {
    "nope:x": "^'nope:x': nope cannot be imported",
    "kvdelta.harness.conformance.models:PROMPT": "has no callable 'PROMPT'",
    "int5": "no scheme 'int5'",
    "transformers:StaticCache(max_cache_len=100)": "a cache for 100 tokens, and the checks put 384 into it",
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
