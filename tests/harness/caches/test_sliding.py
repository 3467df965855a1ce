"""Layers with a sliding window: what attention reads of them, what is let go, and what the records say."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from kvdelta.harness.caches.contenders import SchemeContender, contenders_of, merged
from kvdelta.harness.caches.layers import SchemeLayer, SlidingSchemeLayer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.caches.variants import by_layers
from kvdelta.harness.comparison import compare, compare_protocols
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.harness.subject.kinds import sliding_windows
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError

from ...conftest import SHARP, TINY, tiny_config

WINDOW = 24
SPECS = [
    "int4:group_size=16",
    "asym2:group_size=8,key_axis=channel,sink_tokens=3",
    "kivi:bits=2,group_size=8,residual_length=8",
    "kvarn:bits=2,tile=8",
]


def scheme_of(spec, kinds="all"):
    return parse_scheme(f"{spec}{',' if ':' in spec else ':'}layers={kinds}")


@pytest.fixture(scope="module")
def hybrid():
    """Of three layers the first and the last slide over 24 tokens, as in Gemma 3."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = {**TINY, **SHARP, "num_hidden_layers": 3, "head_dim": 32}
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**config, sliding_window=WINDOW, layer_types=kinds))
    return model.eval().requires_grad_(False)


@pytest.fixture
def hybrid_subject(subject, hybrid):
    return replace(subject, loaded=replace(subject.loaded, model=hybrid))


def prompt(length=70, rows=2):
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(2))


def states(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 2, count, 32, generator=rng) for _ in range(2))


@pytest.mark.parametrize("spec", ["exact", *SPECS])
@pytest.mark.parametrize("counts", [[70, 1, 1, 5, 1], [10, 3, 40, 1, 30], [1] * 60], ids=["prefill", "chunks", "steps"])
def test_a_window_reads_the_newest_of_what_a_full_layer_holds(spec, counts):
    scheme = parse_scheme(spec)
    sliding, full = SlidingSchemeLayer(scheme, WINDOW), SchemeLayer(scheme)
    for seed, count in enumerate(counts):
        visible, before = sliding.get_mask_sizes(count)
        returned, whole = sliding.update(*states(count, seed)), full.update(*states(count, seed))
        for mine, theirs in zip(returned, whole, strict=True):
            assert mine.shape[2] == visible == theirs.shape[2] - before
            assert torch.equal(mine, theirs[:, :, -visible:])
        assert sliding.get_seq_length() == full.get_seq_length()
    assert all(store.dropped > 0 for store in sliding.stores.values())
    assert sum(sum(s.nbytes().values()) for s in sliding.stores.values()) < sum(
        sum(s.nbytes().values()) for s in full.stores.values()
    )


@pytest.mark.parametrize("spec", ["exact:layers=sliding", "exact:layers=all"])
def test_exact_is_transformers_own(hybrid, spec):
    """Bit for bit: a prefill longer than the window, then steps of several tokens and of one."""
    ours, stock = SchemeCache(parse_scheme(spec), hybrid.config), DynamicCache(config=hybrid.config)
    for chunk in prompt().split([50, 7, 1, 1, 11], dim=1):
        assert torch.equal(forward(hybrid, chunk, ours).logits, forward(hybrid, chunk, stock).logits)


@pytest.mark.parametrize("kinds", ["full", "sliding", "all"])
def test_which_layers_are_stored(hybrid, kinds):
    cache = SchemeCache(scheme_of(SPECS[0], kinds), hybrid.config)
    assert cache.quantized_layers == {"full": [1], "sliding": [0, 2], "all": [0, 1, 2]}[kinds]
    cache.fill(prefill(hybrid, prompt(), whole=True))
    bound = prefill(hybrid, prompt())
    for index, layer in enumerate(cache.layers):
        if index not in cache.quantized_layers:
            assert torch.equal(layer.keys, bound.layers[index].keys)


def test_a_whole_prefill_gives_the_logits_of_a_bounded_one(hybrid):
    prefix, suffix = prompt()[:, :50], prompt()[:, 50:]
    for step in (None, 7, 1):
        whole, bounded = (
            suffix_logits(hybrid, copy.deepcopy(prefill(hybrid, prefix, whole=keep)), suffix, step)
            for keep in (True, False)
        )
        assert torch.equal(whole, bounded)


def test_a_bounded_prefill_cannot_fill_groups_that_begin_before_it(hybrid):
    with pytest.raises(UserError, match="kept only the last window of its sliding layers"):
        SchemeCache(scheme_of(SPECS[1]), hybrid.config).fill(prefill(hybrid, prompt()))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("step", [None, 5, 1])
def test_an_evaluation_reads_what_a_live_cache_does(hybrid, spec, step):
    """Filled from an exact prefill and fed with decoded buffers, against forward after forward over the cache itself."""
    prefix, suffix = prompt()[:, :50], prompt()[:, 50:]
    filled = SchemeCache(scheme_of(spec), hybrid.config).fill(prefill(hybrid, prefix, whole=True))
    live = SchemeCache(scheme_of(spec), hybrid.config)
    fill_live(hybrid, prefix, live)
    for mine, theirs in zip(filled.layers, live.layers, strict=True):
        for side, store in mine.stores.items():
            a, b = store.read(), theirs.stores[side].read()
            count = min(a.shape[2], b.shape[2])
            # a layer's input is that of an exact prefill in one, and of this one in the other: the same, before any read
            assert torch.equal(a[:, :, -count:], b[:, :, -count:])
    expected = [forward(hybrid, chunk, live).logits for chunk in suffix.split(step or suffix.shape[1], dim=1)]
    assert torch.equal(suffix_logits(hybrid, filled, suffix, step), torch.cat(expected, dim=1)[:, :-1])


@pytest.mark.parametrize("spec", SPECS)
def test_a_filled_window_holds_no_group_that_it_has_left(hybrid, spec):
    cache = SchemeCache(scheme_of(spec, "sliding"), hybrid.config).fill(prefill(hybrid, prompt(), whole=True))
    for _, _, store in cache.stores():
        left = min(70 - (WINDOW - 1), store.packed_until)
        assert 0 <= left - store.dropped < store.scheme.quantizer.tokens_per_group


def test_rows_of_a_batch_are_windows_of_their_own(hybrid_subject, options, tmp_path):
    """Batched, and one after another, as `hqq` rows and lossless ones go: the whole prefill's rows are taken apart."""
    specs = [f"{spec},layers=all" for spec in SPECS[:3]] + ["exact:keep_recent=8"]
    runs = [
        compare(specs, replace(options, batch=str(size), out=str(tmp_path / str(size))), subject=hybrid_subject)[0]
        for size in (1, 3)
    ]
    for i in range(len(specs) + 1):
        one, other = (torch.tensor([window.nll[i] for window in run.windows]) for run in runs)
        assert torch.allclose(one, other, rtol=1e-5)
    assert all(run.audit.failures == {} for run in runs)


def test_what_is_taken_back_never_came(hybrid):
    """As assisted generation does: it asks for the past to be kept, and crops."""
    tokens, more = prompt(60), prompt(9, 2)
    cache, straight = (SchemeCache(scheme_of(SPECS[0]), hybrid.config) for _ in range(2))
    cache.activate_past_recording()
    for one in (cache, straight):
        fill_live(hybrid, tokens, one)
    forward(hybrid, more[:, :4], cache)
    cache.crop(-4)
    assert torch.equal(forward(hybrid, more[:, :1], cache).logits, forward(hybrid, more[:, :1], straight).logits)
    with pytest.raises(UserError, match="activate_past_recording"):
        straight.crop(-2)


@pytest.mark.parametrize("spec", SPECS)
def test_a_cropped_window_is_that_of_a_cropped_full_layer(spec):
    sliding, full = SlidingSchemeLayer(parse_scheme(spec), WINDOW), SchemeLayer(parse_scheme(spec))
    sliding.activate_past_recording()
    for seed, count in enumerate([50, 9, 1, 30, 2]):
        visible, _ = sliding.get_mask_sizes(count)
        returned, whole = sliding.update(*states(count, seed)), full.update(*states(count, seed))
        assert all(torch.equal(a, b[:, :, -visible:]) for a, b in zip(returned, whole, strict=True))
        for layer in (sliding, full):
            layer.crop(-(count // 3))
        assert all(store.dropped > 0 for store in sliding.stores.values())


@pytest.mark.parametrize(
    "way", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["greedy", "beams", "lookup"]
)
def test_generate(hybrid, way):
    tokens = prompt(40, 1 if "prompt_lookup_num_tokens" in way else 2)
    told = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 20, "do_sample": False}
    word = cache_keyword(hybrid)
    exact = SchemeCache(parse_scheme("exact:layers=all"), hybrid.config)
    assert torch.equal(
        hybrid.generate(tokens, **told, **way, **{word: exact}),
        hybrid.generate(tokens, **told, **way, **{word: DynamicCache(config=hybrid.config)}),
    )
    hybrid.generate(tokens, **told, **way, **{word: SchemeCache(scheme_of(SPECS[2]), hybrid.config)})


def test_a_row_says_which_layers_it_stores_and_counts_pairs_of_these(hybrid_subject, options):
    contenders = by_layers(contenders_of([SPECS[0]]), ["full", "sliding", "all", "full"])
    assert [one.label for one in contenders] == [
        "exact",
        SPECS[0],
        *(f"{SPECS[0]},layers={k}" for k in ("sliding", "all")),
    ]
    run, _ = compare(contenders, options, subject=hybrid_subject)
    assert run.audit.failures == {}
    assert [one.quantized_layers for one in run.contenders] == [[1], [1], [0, 2], [0, 1, 2]]
    prefix, scored = options.window_length - options.score_length, options.score_length - 1
    window = run.windows[0]
    inside = [max(0, prefix - (p + 1 - WINDOW)) for p in range(prefix, prefix + scored)]  # of the prefix, by query
    full = prefix * scored, prefix * scored + scored * (scored + 1) // 2
    assert (window.key_pairs[1], window.pairs[1]) == full
    assert (window.key_pairs[2], window.pairs[2]) == (2 * sum(inside), 2 * scored * WINDOW)
    assert (window.value_pairs[3], window.pairs[3]) == (full[0] + 2 * sum(inside), full[1] + 2 * scored * WINDOW)
    losses = [one.nll for one in run.windows]
    assert all(len({one[i] for i in range(4)}) == 4 for one in losses)
    bits = [
        8 * sum(side.counted for side in one.bytes.values()) / sum(s.elements for s in one.bytes.values())
        for one in run.contenders
    ]
    assert bits[1:] == pytest.approx([5.0] * 3)  # groups of 16 numbers, one float16 scale each


def test_several_protocols_store_the_window_step_by_step(hybrid_subject, options):
    protocols = replace(options, protocol="stepwise", step=1).by(["two-pass", "stepwise"], [8, 1])
    both = compare_protocols([f"{SPECS[1]},layers=all"], protocols, subject=hybrid_subject)
    assert all(run.audit.failures == {} for run, _ in both)
    reads = [sum(window.key_pairs[1] for window in run.windows) for run, _ in both]
    assert reads[0] < reads[1] < reads[2]  # the nearer tokens are read from storage too


def test_a_model_whose_every_layer_slides(subject, options):
    model = MistralForCausalLM(MistralConfig(**TINY, **SHARP, sliding_window=WINDOW)).eval().requires_grad_(False)
    slides = replace(subject, loaded=replace(subject.loaded, model=model))
    with pytest.raises(UserError, match="layers=all quantizes those"):
        compare([SPECS[0]], options, subject=slides)
    run, _ = compare([f"{SPECS[0]},layers=all"], options, subject=slides)
    assert run.audit.failures == {}
    assert [one.quantized_layers for one in run.contenders] == [[0, 1], [0, 1]]


def test_a_kind_of_layer_that_the_model_has_not(subject, options):
    with pytest.raises(UserError, match="has no layer with a sliding window; leave layers=sliding out"):
        compare([f"{SPECS[0]},layers=sliding"], options, subject=subject)
    run, _ = compare([f"{SPECS[0]},layers=all"], options, subject=subject)
    assert run.contenders[1].quantized_layers == [0, 1]


def test_a_window_within_the_exact_tail_would_read_nothing(hybrid):
    contender = SchemeContender.of("kivi:bits=2,group_size=8,residual_length=32,layers=sliding")
    with pytest.raises(
        UserError, match="layer 0 attends to a window of 24 tokens, and behind a prefix of 96 the newest 32"
    ):
        contender.check(hybrid, 96)


def test_others_have_no_choice_of_layers():
    with pytest.raises(UserError, match="has no choice of layers"):
        by_layers(contenders_of(["sink-window:tokens=24"]), ["all"])


def test_equal_codes_in_other_layers_are_another_row():
    contenders = contenders_of(["int4", "int4:layers=all", "symmetric:bits=4,layers=all"])
    assert [one.label for one in merged(contenders, lambda note: None)] == ["exact", "int4", "int4:layers=all"]


def test_layers_are_said_once_and_of_a_whole_map(tmp_path):
    with pytest.raises(UserError, match="layers=full here, and all in symmetric:bits=4,layers=all: say it once"):
        parse_scheme("matched(int4:layers=all):layers=full")
    (tmp_path / "map.json").write_text('{"default": "int4:layers=all"}')
    with pytest.raises(UserError, match=r"said of the whole map, not in it: matched\(@FILE\):layers=all"):
        parse_scheme(f"@{tmp_path}/map.json")


def test_a_chunked_layer_is_none_that_slides(hybrid):
    """transformers stores both alike, and masks them otherwise."""
    config = copy.deepcopy(hybrid.config)
    cache = DynamicCache(config=config)
    assert sliding_windows(cache, config) == {0: WINDOW, 2: WINDOW}
    config.layer_types = ["chunked_attention", "full_attention", "sliding_attention"]
    assert sliding_windows(cache, config) == {2: WINDOW}
    assert sliding_windows(DynamicCache(config=tiny_config()), LlamaForCausalLM(tiny_config()).config) == {}
