"""What is scored of an answer: what decoding over the same cache gives, and what exact in one forward gives."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache

from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.protocols import fill_live, prefill
from kvdelta.harness.subject.windows import Batch
from kvdelta.harness.tasks.answering import ContextReads, answer_logits, answered, exactly, likeliest
from kvdelta.harness.tasks.samples import Sample


def sample_of(model, seed, answer=None, context=200, question=12):
    """Random bytes, none of them 0, which generate would take for padding; its answer is what the exact model writes, unless another is given."""
    rng = random.Random(seed)
    ids = [rng.randrange(1, 256) for _ in range(context + question)]
    if answer is None:
        written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        answer = written[0, len(ids) :].tolist()
    half = len(answer) // 2
    spans = ((0, half), (half, len(answer)))
    return Sample("random", 0, seed, tuple(ids[:context]), tuple(ids[context:]), tuple(answer), spans)


def filled(model, spec, sample):
    batch, contender = Batch((sample.window,)), SchemeContender.of(spec)
    prefilled = prefill(model, batch.prefix)
    cache = contender.empty(model)
    contender.fill(cache, model, batch, prefilled)
    return cache, prefilled


def as_stored(model, cache):
    """transformers' own cache, with what a scheme's gives back of the context."""
    plain = DynamicCache(config=model.config)
    for index, _ in enumerate(cache.layers):
        key, value = (store.read() for store in cache.layers[index].stores.values())
        plain.update(key, value, index)
    return plain


def decoded(model, cache, sample):
    """What greedy decoding writes after the question over a cache that holds the context."""
    ids = torch.tensor([[*sample.context, *sample.question]])
    count = len(sample.answer)
    out = model.generate(ids, past_key_values=cache, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
@pytest.mark.parametrize("spec", ["exact", "int8", "int4", "asym2"])
def test_a_match_is_what_greedy_decoding_gives(loaded, spec):
    model, matches = loaded.model, []
    for seed in range(6):
        sample = sample_of(model, seed)
        cache, _ = filled(model, spec, sample)
        hits = likeliest(answer_logits(model, copy.deepcopy(cache), sample, None), sample)
        written = decoded(model, as_stored(model, cache), sample)
        assert bool(hits.all()) == (written == list(sample.answer))
        first_miss = next((i for i, hit in enumerate(hits.tolist()) if not hit), len(hits))
        assert written[:first_miss] == list(sample.answer[:first_miss])
        matches.append(bool(hits.all()))
    assert all(matches) if spec == "exact" else not all(matches) if spec == "asym2" else True


def test_the_exact_cache_gives_what_one_forward_gives(loaded):
    sample = sample_of(loaded.model, 1, answer=[7, 200, 31])
    cache, _ = filled(loaded.model, "exact", sample)
    over_cache, _ = answered(answer_logits(loaded.model, cache, sample, None), sample, None)
    alone = exactly(loaded.model, sample)
    assert over_cache.kl == 0
    assert over_cache.nll == pytest.approx(alone.nll, rel=1e-5)
    assert (over_cache.match, over_cache.found) == (alone.match, alone.found)


def test_losses_and_answers_found_are_those_of_the_logits(loaded):
    sample = sample_of(loaded.model, 2)
    half = len(sample.answer) // 2
    logits = torch.zeros(1, len(sample.answer), 256)
    for i, token in enumerate(sample.answer[:half]):  # the first answer is right, and nothing of the second
        logits[0, i, token] = 5.0
    for i, token in enumerate(sample.answer[half:], half):
        logits[0, i, (token + 1) % 256] = 5.0
    expected = torch.nn.functional.cross_entropy(logits[0], torch.tensor(sample.answer), reduction="sum").item()
    one, _ = answered(logits.clone(), sample, None)
    assert one.nll == pytest.approx(expected, rel=1e-6)
    assert (one.match, one.found) == (False, 1)


@pytest.mark.parametrize(("spec", "step", "packed"), [("int4", None, 200), ("kivi2", None, 192), ("int4", 1, 200)])
def test_what_is_read_is_counted_of_the_context_alone(loaded, spec, step, packed):
    spec = "kivi2:residual_length=32" if spec == "kivi2" else spec
    sample = sample_of(loaded.model, 3, answer=[1, 2, 3, 4])
    cache, _ = filled(loaded.model, spec, sample)
    fed = len(sample.question) + len(sample.answer)
    layers = range(len(cache.layers))
    observer = ContextReads(cache, fed - 1, layers, True, context=len(sample.context))
    observer.watch()
    answer_logits(loaded.model, cache, sample, step)
    for reads in observer.stop().reads.values():
        assert reads.pairs == (fed - 1) * 200
        assert reads.key == (fed - 1) * packed


def test_a_foreign_cache_is_counted_by_value(loaded):
    sample = sample_of(loaded.model, 4, answer=[1, 2])
    cache = DynamicCache(config=loaded.model.config)
    fed = len(sample.question) + len(sample.answer)
    observer = ContextReads(cache, fed - 1, [0, 1], False, context=len(sample.context))
    fill_live(loaded.model, sample.window.prefix, cache)
    observer.watch()
    answer_logits(loaded.model, cache, sample, None)
    for reads in observer.stop().reads.values():
        assert (reads.pairs, reads.key, reads.value) == ((fed - 1) * 200, 0, 0)
