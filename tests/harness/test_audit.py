"""The audit: coverage as it must come out, and caches that are not read are caught."""

import pytest
import torch
from transformers import DynamicCache

from kvdelta.harness.audit import Observer, Reads, lost_rows
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.comparison import compare
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.schemes import parse_scheme


class TellsNothing(DynamicCache):
    """Our cache by another class: what it holds is known by value only."""

    def __init__(self, config, spec):
        super().__init__(config=config)
        self.layers = SchemeCache(parse_scheme(spec), config).layers


def keys(tokens):
    return torch.randn(1, 1, tokens, 32)


def coverage_of(spec, prefix, suffix, step):
    """Coverage of a one-layer cache that is fed random keys and values, no model needed."""
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=32)
    cache = SchemeCache(parse_scheme(spec), config)
    observer = Observer(cache, suffix - 1, layers=[0], declared=True)
    cache.update(keys(prefix), keys(prefix), 0)
    observer.watch()
    for first in range(0, suffix, step):
        n = min(step, suffix - first)
        cache.update(keys(n), keys(n), 0)
    return observer.stop().reads[0]


def test_coverage_of_kivi_at_1536_and_512():
    """All 1536 keys are packed, 1408 values; 511 queries see 256 own tokens on average: 1536/1792 and 1408/1792."""
    two_pass = coverage_of("kivi4", 1536, 512, 512)
    assert two_pass.key_coverage == pytest.approx(6 / 7, abs=1e-12)
    assert two_pass.value_coverage == pytest.approx(11 / 14, abs=1e-12)
    stepwise = coverage_of("kivi4", 1536, 512, 1)
    assert stepwise.key_coverage == pytest.approx(0.9641, abs=5e-5)
    assert stepwise.value_coverage == pytest.approx(0.9280, abs=5e-5)
    assert coverage_of("kivi4", 0, 2048, 2048).key_coverage == 0


@pytest.mark.parametrize("step", [None, 5])
def test_by_value_counts_what_the_scheme_declares(model, subject, step):
    window = subject.windows[0]
    spec = "kivi:bits=2,group_size=8,residual_length=16"
    totals = []
    for cache in (SchemeCache(parse_scheme(spec), model.config), TellsNothing(model.config, spec)):
        observer = Observer(cache, 31, layers=[0, 1], declared=isinstance(cache, SchemeCache))
        fill_live(model, window.prefix, cache)
        observer.watch()
        suffix_logits(model, cache, window.suffix, step)
        totals.append(observer.stop().reads)
    assert totals[0] == totals[1]


def test_rows_that_do_not_come_back_are_lost():
    written = torch.randn(1, 2, 6, 4)
    assert lost_rows(written, written.clone()).tolist() == [0] * 6
    changed = written.clone()
    changed[0, 1, 3, 2] += 1
    assert lost_rows(written, changed).tolist() == [0, 0, 0, 1, 0, 0]
    assert lost_rows(written, written[:, :, [0, 4, 5]]).tolist() == [0, 1, 1, 1, 0, 0]
    recurring = written[:, :, [0, 1, 0, 2, 0, 3]]
    assert lost_rows(recurring, recurring[:, :, 3:]).tolist() == [1, 1, 1, 0, 0, 0]


def test_a_cache_that_is_only_written_fails(subject, options):
    """DynamicCache gives back what it was given: under another name it is a scheme that quantizes nothing."""
    contenders = [
        SchemeContender.of("exact"),
        ForeignContender("fake", lambda config: DynamicCache(config=config)),
    ]
    run, _ = compare(contenders, options, subject=subject)
    assert "cache not read" in run.audit.failures["fake"][0]
    assert any("bit-identical" in reason for reason in run.audit.failures["fake"])


def test_single_pass_fails_and_two_pass_does_not(subject, options, tmp_path):
    from dataclasses import replace

    specs = ["int8:group_size=16", "int4:group_size=16"]
    run, _ = compare(specs, options, subject=subject)
    assert run.audit.failures == {}
    assert run.audit.identity_is_exact
    assert run.audit.zeroed_codes_move_logits == dict.fromkeys(specs, True)
    single = replace(options, protocol="single-pass", out=str(tmp_path / "single"))
    run, _ = compare(specs, single, subject=subject)
    assert set(run.audit.failures) == set(specs)
    assert any("bit-identical to" in reason for reason in run.audit.failures[specs[0]])


class WritesOnly(SchemeCache):
    """Stores packed codes, and attends to an exact copy: says that it read what it did not read."""

    def fill(self, prefilled):
        copies = {index: [layer.keys, layer.values] for index, layer in enumerate(prefilled.layers)}
        self.__dict__["copies"] = copies
        return super().fill(prefilled)

    def update(self, keys, values, layer, *args, **kwargs):
        super().update(keys, values, layer, *args, **kwargs)
        copies = self.__dict__.setdefault("copies", {})
        past = copies.get(layer)
        copies[layer] = pair = (
            [keys, values] if past is None else [torch.cat(x, 2) for x in zip(past, (keys, values), strict=True)]
        )
        return pair[0], pair[1]


class CheatingContender(SchemeContender):
    def empty(self, model):
        return WritesOnly(self.scheme, model.config)


def test_codes_that_nobody_reads_are_found_out(subject, options):
    """Coverage is what SchemeCache declares; the zeroed codes and the bit-identical losses tell."""
    cheat = CheatingContender("int4:group_size=16", parse_scheme("int4:group_size=16"))
    run, _ = compare([SchemeContender.of("exact"), cheat], options, subject=subject)
    assert run.windows[0].key_pairs[1] > 0
    assert run.audit.failures["int4:group_size=16"] == [
        "zeroing its stored codes does not move the logits",
        "losses bit-identical to exact",
    ]


def test_prefill_is_the_same_for_every_scheme(model, subject):
    """A fill must not change what was captured: the next scheme gets the same."""
    prefilled = prefill(model, subject.windows[0].prefix)
    before = [layer.keys.clone() for layer in prefilled.layers]
    cache = SchemeCache(parse_scheme("asym1:group_size=16"), model.config).fill(prefilled)
    suffix_logits(model, cache, subject.windows[0].suffix)
    cache.zero_codes()
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, prefilled.layers, strict=True))


def test_nothing_attended_is_nothing_read():
    assert (Reads().key_coverage, Reads().value_coverage) == (0.0, 0.0)
    assert (Reads(8, 2, 4).key_coverage, Reads(8, 2, 4).value_coverage) == (0.25, 0.5)


def test_queries_beyond_the_scored_ones_do_not_count():
    class Everything:
        held = torch.zeros(1, 1, 0, 4)

        def update(self, keys, values, layer):
            self.held = torch.cat([self.held, keys], dim=2)
            return self.held, self.held

    observer = Observer(Everything(), scored=3, layers=[0], declared=False)
    observer.watch()
    for tokens in (2, 2, 2, 1):
        observer.cache.update(torch.randn(1, 1, tokens, 4), torch.randn(1, 1, tokens, 4), 0)
    assert observer.stop().reads[0] == Reads(pairs=1 + 2 + 3, key=0, value=0 + 1 + 2 + 3)
