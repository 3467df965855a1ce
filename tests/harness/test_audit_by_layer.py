"""Each layer answers for itself, and what two rows have in common fails neither of two honest ones."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.foreign import ForeignContender
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.comparison import compare
from kvdelta.harness.failures import failures
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.schemes import parse_scheme

from ..conftest import TINY

SPEC = "int4:group_size=16"


class Rounded(DynamicCache):
    """Gives back keys and values to two decimals, in some layers."""

    def __init__(self, config, layers=(0, 1), digits=2):
        super().__init__(config=config)
        self.rounded, self.digits = layers, digits

    def update(self, keys, values, layer, *args, **kwargs):
        pair = super().update(keys, values, layer, *args, **kwargs)
        return tuple(x.round(decimals=self.digits) for x in pair) if layer in self.rounded else pair


def foreign(label, lossless=False, **settings):
    return ForeignContender(label, lambda config: Rounded(config, **settings), lossless=lossless)


def test_one_layer_that_is_read_does_not_vouch_for_the_others(subject, options):
    run, _ = compare([foreign("both"), foreign("first", layers=(0,))], options, subject=subject)
    assert run.windows[0].key_pairs[2] > 0
    assert run.audit.failures == {"first": ["cache not read in layers 1 (key), 1 (value)"]}
    assert run.audit.reads["first"][0].key > 0 == run.audit.reads["first"][1].key


class HalfRead(SchemeCache):
    """Stores packed codes, and in the last layer attends to an exact copy of the keys."""

    def __init__(self, scheme, config):
        super().__init__(scheme, config)
        self.copy = DynamicCache(config=config)

    def fill(self, prefilled):
        for index, layer in enumerate(prefilled.layers):
            self.copy.update(layer.keys, layer.values, index)
        return super().fill(prefilled)

    def update(self, keys, values, layer, *args, **kwargs):
        exact, _ = self.copy.update(keys, values, layer)
        read, read_values = super().update(keys, values, layer, *args, **kwargs)
        return exact if layer == 1 else read, read_values


class HalfReadContender(SchemeContender):
    def empty(self, model):
        return HalfRead(self.scheme, model.config)


def test_codes_of_one_layer_that_nobody_reads_are_found_out(subject, options):
    """The logits move, since the other layer's codes are read."""
    run, _ = compare([HalfReadContender("half", parse_scheme(SPEC))], options, subject=subject)
    assert run.audit.zeroed_codes_move_logits == {"half": True}
    assert run.audit.failures == {"half": ["zeroing stored codes changes nothing that is read in layers 1 (key)"]}


@pytest.mark.parametrize("step", [None, 8])
@pytest.mark.parametrize("layer", [0, 1])
def test_what_a_layer_reads_moves_the_logits_when_it_alone_is_zeroed(model, subject, layer, step):
    """What the control takes for granted: a layer whose update returns other numbers changes the logits."""
    window = subject.windows[0]
    prefilled = prefill(model, window.prefix)
    intact, zeroed = (SchemeCache(parse_scheme(SPEC), model.config).fill(prefilled) for _ in range(2))
    for index, _, store in zeroed.stores():
        if index == layer:
            store.zero_codes()
    assert not torch.equal(*(suffix_logits(model, cache, window.suffix, step) for cache in (intact, zeroed)))


def test_layers_and_sides_that_are_exact_are_not_asked(subject, options):
    specs = [f"{SPEC},exact_first_layers=1", f"{SPEC},only=key"]
    run, _ = compare(specs, options, subject=subject)
    assert run.audit.failures == {}
    assert [contender.lossy_layers for contender in run.contenders] == [
        {"key": [], "value": []},
        {"key": [1], "value": [1]},
        {"key": [0, 1], "value": []},
    ]


@pytest.fixture
def hybrid(subject):
    """Of three layers the first slides over 24 tokens, as in Gemma 3."""
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    config = Gemma3TextConfig(**{**TINY, "num_hidden_layers": 3}, head_dim=16, sliding_window=24, layer_types=kinds)
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    return replace(subject, loaded=replace(subject.loaded, model=model))


def test_layers_that_slide_are_not_counted(hybrid, options):
    """A cache that gives back what it was given reads nothing, whatever the model's sliding layers drop."""
    rounded = foreign("rounded", layers=(1, 2))
    stock = ForeignContender("stock", lambda config: DynamicCache(config=config))
    specs = [SPEC, "sink-window:sinks=4,tokens=24", rounded, stock]
    run, _ = compare(specs, replace(options, windows=3), subject=hybrid)
    assert run.audit.failures == {
        "stock": ["cache not read (key and value coverage 0)", "losses bit-identical to exact"]
    }
    assert all(set(layers) == {1, 2} for layers in run.audit.reads.values())
    assert len(set(run.windows[0].pairs)) == 1  # one denominator for schemes, eviction and foreign caches
    assert [contender.quantized_layers for contender in run.contenders] == [[1, 2]] * 5


def test_tokens_that_recur_are_evicted_all_the_same(subject, options):
    """The first layer's values of a token are the same wherever it stands: their bytes do not say which was kept."""
    tokens = torch.full_like(subject.tokens, 7)
    windows = [replace(window, tokens=tokens[: len(window.tokens)]) for window in subject.windows[:1]]
    run, _ = compare(["sliding-window:tokens=24"], options, subject=replace(subject, tokens=tokens, windows=windows))
    window = run.windows[0]
    assert window.key_pairs[1] == window.value_pairs[1] == 2 * 31 * 72  # layers, queries, evicted tokens of the prefix
    assert window.pairs[1] == 2 * (31 * 96 + 31 * 32 // 2)


def test_equal_storage_under_two_names_is_honest(subject, options, tmp_path):
    """Blocks of 8 tokens, a map that says what its default says, a rule of eviction in bits, a cache of another name."""
    same = tmp_path / "map.json"
    same.write_text(json.dumps({"default": SPEC, "layers": {"1": "symmetric:bits=4,group_size=16"}}))
    contenders = [
        SPEC,
        f"{SPEC},flush_every=8",
        f"@{same}",
        "sliding-window:tokens=24",
        "sliding-window:bits=4",
        foreign("one"),
        foreign("two"),
    ]
    run, _ = compare(contenders, options, subject=subject)
    losses = [[window.nll[i] for window in run.windows] for i in range(8)]
    assert losses[1] == losses[2] == losses[3]
    assert losses[4] == losses[5]
    assert losses[6] == losses[7]
    assert run.audit.failures == {}


def test_losses_of_the_exact_cache_are_no_honest_twin(subject, options):
    """Its rows came back changed, and the losses say that nobody looked."""
    run, _ = compare([SPEC], options, subject=subject)
    for window in run.windows:
        window.nll[1] = window.nll[0]
    assert failures(run) == {SPEC: ["losses bit-identical to exact"]}


def test_who_says_lossless_is_tested(subject, options):
    stock = ForeignContender("stock", lambda config: DynamicCache(config=config), lossless=True)
    contenders = [stock, foreign("rounds", lossless=True, layers=(1,)), "exact:keep_recent=8,sink_tokens=2"]
    run, _ = compare(contenders, options, subject=subject)
    assert run.audit.failures == {
        "rounds": ["it says that it is lossless, but rows come back changed in layers 1 (key), 1 (value)"]
    }


def test_records_from_before_are_judged_by_their_sums(subject, options):
    run, _ = compare([foreign("first", layers=(0,)), SPEC], options, subject=subject)
    run.audit.reads, run.audit.unmoved_by_zeroed_codes = {}, {}
    for contender in run.contenders:
        contender.lossy_layers = None
    assert failures(run) == {}
    for window in run.windows:
        window.key_pairs[2] = 0
    assert failures(run) == {SPEC: ["cache not read (key coverage 0)"]}
