"""What is scored over a stored context, against a cache that is filled and fed by hand."""

import pytest
import torch

from kvdelta.harness.audit import total
from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.evaluation.answers import Answers
from kvdelta.harness.protocols import prefill
from kvdelta.harness.subject.forward import forward
from kvdelta.schemes import parse_scheme

SPECS = [
    "exact",
    "int4:group_size=16",
    "kivi:bits=2,group_size=8,residual_length=16",
    "gear(asym2:group_size=16):block=8,rank=2",
]
CONTEXT = tuple(torch.randint(1, 128, (50,), generator=torch.Generator().manual_seed(3)).tolist())
CONTINUATIONS = [(5, 9, 77, 3), (8,), (5, 9, 12), tuple(range(20, 60))]


def answers(model, feed_last=0, specs=SPECS):
    return Answers(model, [SchemeContender.of(spec) for spec in specs], feed_last)


def by_hand(model, spec, continuation, feed_last):
    """Fill a cache with what pass 1 has, feed it the rest, take the log-probabilities of the continuation."""
    known = len(CONTEXT) - feed_last
    tokens = torch.tensor([[*CONTEXT, *continuation]])
    with torch.inference_mode():
        cache = SchemeCache(parse_scheme(spec), model.config).fill(prefill(model, tokens[:, :known]))
        first = forward(model, tokens[:, :known], None).logits[0, -1:]
        rest = tokens[:, known:-1]
        logits = torch.cat([first, forward(model, rest, cache).logits[0]]) if rest.shape[1] else first
    rows = logits[-len(continuation) :].log_softmax(-1)
    return float(rows.gather(1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("feed_last", [0, 1, 7])
def test_continuations_score_as_by_hand(model, feed_last):
    asked = answers(model, feed_last)
    for scheme, spec in enumerate(SPECS):
        scored = asked.scored(scheme, CONTEXT, CONTINUATIONS)
        for answer, continuation in zip(scored, CONTINUATIONS, strict=True):
            assert answer.loglikelihood == pytest.approx(by_hand(model, spec, continuation, feed_last), abs=1e-4)


@pytest.mark.parametrize("spec", SPECS[1:])
def test_no_choice_changes_what_the_next_one_reads(model, spec):
    """The last one is longer than KIVI's residual: stored and cropped again it would leave the context's tail packed."""
    together = answers(model, specs=[spec]).scored(0, CONTEXT, CONTINUATIONS)
    backwards = answers(model, specs=[spec]).scored(0, CONTEXT, CONTINUATIONS[::-1])[::-1]
    alone = [answers(model, specs=[spec]).scored(0, CONTEXT, [one])[0] for one in CONTINUATIONS]
    assert together == backwards == alone


@pytest.mark.parametrize(("feed_last", "continuation"), [(0, (5, 9, 77)), (0, (8,)), (1, (8,)), (4, (5, 9, 77))])
def test_coverage_is_counted_over_the_queries_that_predict(model, feed_last, continuation):
    """int4 packs every token of a context: each query that is fed reads all that pass 1 had, and what pass 1 predicts reads nothing."""
    reads = total(answers(model, feed_last).scored(1, CONTEXT, [continuation])[0].reads.values())
    context, count, layers = len(CONTEXT), len(continuation), model.config.num_hidden_layers
    attended = [context + i for i in range(count)]  # by the query that predicts token i, itself among them
    fed = count if feed_last else count - 1
    assert (reads.pairs, reads.key, reads.value) == (
        layers * sum(attended),
        *[layers * fed * (context - feed_last)] * 2,
    )


def test_bits_are_those_of_what_is_held(model):
    exact, int4 = (answers(model).scored(i, CONTEXT, [(5, 9)])[0] for i in (0, 1))
    assert 8 * exact.counted / exact.elements == 16
    assert 8 * int4.counted / int4.elements == 4 + 16 / 16  # a scale of 16 bits to 16 numbers


def test_zeroed_codes_move_what_is_predicted(model):
    asked = answers(model)
    assert asked.zeroed_codes_move() == {}  # nothing was asked yet
    asked.scored(0, CONTEXT, [(5, 9)])
    assert asked.zeroed_codes_move() == dict.fromkeys(SPECS[1:], True)
    short = answers(model, specs=["exact", "kivi:bits=2,group_size=8,residual_length=64"])
    short.scored(0, CONTEXT, [(5, 9)])
    assert short.zeroed_codes_move() == {}  # there are no codes in so short a context


def test_an_answer_is_computed_once(model, monkeypatch):
    asked, told = answers(model), []
    asked.on_answer = lambda done, planned: told.append(done)
    first = asked.scored(2, CONTEXT, CONTINUATIONS)
    monkeypatch.setattr(Answers, "_score", None)
    assert asked.scored(2, CONTEXT, CONTINUATIONS[::-1])[::-1] == first
    assert told == [1, 2, 3, 4]
