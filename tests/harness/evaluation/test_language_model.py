"""SchemeLM in lm_eval's own evaluation: exact is HFLM, and what reads nothing is refused."""

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.evaluation.language_model import SchemeLM
from kvdelta.harness.protocols import prefill
from kvdelta.harness.subject.forward import cache_keyword
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.schemes import parse_scheme

from ...conftest import TINY

SCHEMES = ["exact", "int4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"]


@pytest.fixture(scope="session")
def manager(task_folder):
    return TaskManager(include_path=str(task_folder), include_defaults=False)


@pytest.fixture
def evaluated(manager):
    def run(model, *tasks):
        return simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)

    return run


def stock(loaded):
    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=1)


def alike(ours, theirs, tasks):
    """Every response and every figure."""
    for task in tasks:
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["prompt_hash"] == other["prompt_hash"]
            for one, two in zip(mine["resps"], other["resps"], strict=True):
                if isinstance(two[0], str):
                    assert one == two
                else:
                    assert one[0][1] == two[0][1]
                    assert one[0][0] == pytest.approx(two[0][0], abs=1e-5)
        assert ours["results"][task] == theirs["results"][task]


@pytest.mark.parametrize("feed_last", [0, 1, 3, 1000])
def test_exact_is_stock(task_model, evaluated, feed_last):
    """1000: all but the first token of each context is fed in pass 2."""
    tasks = ["endings", "numbers", "mixed", *(["letters"] if feed_last else [])]
    ours = evaluated(SchemeLM(task_model, "exact", feed_last=feed_last), *tasks)
    theirs = evaluated(stock(task_model), *tasks)
    alike(ours, theirs, tasks)
    texts = {sample["resps"][0][0] for sample in theirs["samples"]["numbers"]}
    assert len(texts) > 2  # it writes something, and not the same


def test_what_is_too_long_is_cut_as_stock_cuts_it(task_model, evaluated):
    ours, theirs = SchemeLM(task_model), stock(task_model)
    ours._max_length = theirs._max_length = 24  # contexts have 40 tokens and more
    alike(evaluated(ours, "endings", "numbers"), evaluated(theirs, "endings", "numbers"), ["endings", "numbers"])


def test_layers_with_a_window_are_as_stock_has_them(task_model, evaluated):
    """They are no part of the scheme, and each choice changes them: the next one starts from what the context left."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**TINY | {"initializer_range": 0.2}, head_dim=16, sliding_window=24, layer_types=kinds)
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    loaded = LoadedModel(model, task_model.tokenizer, "hybrid", {"kind": "test"})
    alike(
        evaluated(SchemeLM(loaded), "endings", "numbers"), evaluated(stock(loaded), "endings", "numbers"), ["endings"]
    )
    whole = SchemeLM(loaded, "int4:group_size=16,layers=all")
    assert evaluated(whole, "endings")["results"]["endings"]["acc,none"] >= 0
    assert {
        reads.key > 0 for answers in whole.answered.values() for one in answers for reads in one.reads.values()
    } == {True}


def test_several_schemes_share_a_prefill_and_answer_as_each_alone(task_model, evaluated, monkeypatch):
    from kvdelta.harness.evaluation import answers

    prefills = []
    real = answers.prefilled_with_logits
    monkeypatch.setattr(answers, "prefilled_with_logits", lambda *args, **how: prefills.append(1) or real(*args, **how))
    together = [evaluated(lm, "endings", "numbers") for lm in SchemeLM.several(task_model, SCHEMES)]
    assert len(prefills) == 8  # of four contexts a task
    for scheme, result in zip(SCHEMES, together, strict=True):
        alike(result, evaluated(SchemeLM(task_model, scheme), "endings", "numbers"), ["endings", "numbers"])
    likelihoods = [[one["resps"] for one in result["samples"]["endings"]] for result in together]
    assert likelihoods[0] != likelihoods[1] != likelihoods[2]


def test_what_a_scheme_writes_is_what_generate_writes_over_its_cache(task_model, evaluated):
    scheme = SCHEMES[2]
    sample = evaluated(SchemeLM(task_model, scheme), "numbers")["samples"]["numbers"][0]
    prompt = torch.tensor([task_model.tokenizer.encode(sample["arguments"][0][0])])
    cache = SchemeCache(parse_scheme(scheme), task_model.model.config).fill(prefill(task_model.model, prompt[:, :-1]))
    written = task_model.model.generate(
        prompt, max_new_tokens=9, do_sample=False, **{cache_keyword(task_model.model): cache}
    )
    text = task_model.tokenizer.decode(written[0, prompt.shape[1] :])
    for stop in ("w3", "w4"):
        text = text.split(stop)[0]
    assert sample["resps"][0][0] == text


def test_samples_are_drawn_alike_by_every_scheme_and_anew_for_each_repeat(task_model, evaluated):
    first, second = SchemeLM.several(task_model, ["exact", "int8:group_size=16"])
    drawn = [evaluated(lm, "sampled")["samples"]["sampled"] for lm in (first, second)]
    again = evaluated(SchemeLM(task_model), "sampled")["samples"]["sampled"]
    assert [one["resps"] for one in again] == [one["resps"] for one in drawn[0]]
    assert all(one["resps"][0][0] != one["resps"][0][1] for one in again)
    same = [a["resps"] == b["resps"] for a, b in zip(*drawn, strict=True)]
    assert np.mean(same) >= 0.5  # 8 bits seldom change a draw


def test_choices_of_one_token_are_refused_unless_the_last_tokens_are_fed(task_model, evaluated, refused):
    with refused("letters reads nothing from storage: each continuation is one token.*--feed-last 1"):
        evaluated(SchemeLM(task_model, "int4:group_size=16"), "letters")
    lm = SchemeLM(task_model, "int4:group_size=16", feed_last=1)
    exact = evaluated(SchemeLM(task_model), "mixed")["samples"]["mixed"]
    fed = evaluated(lm, "letters")["samples"]["letters"]
    assert lm.silent == {"letters": (0, 12)}
    assert [one["resps"][0][0][0] for one in fed] != pytest.approx([one["resps"][0][0][0] for one in exact], abs=1e-4)


def test_the_share_of_requests_that_read_nothing_is_counted(task_model, evaluated):
    lm = SchemeLM(task_model, "int4:group_size=16")
    evaluated(lm, "mixed")
    assert lm.silent == {"mixed": (4, 12)}


def test_whole_texts_are_refused(task_model, evaluated, refused):
    with refused("task rolling asks for the log-likelihood of a whole text"):
        evaluated(SchemeLM(task_model, "int4:group_size=16"), "rolling")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("kiwi2", "kiwi2"),
        ("sink-window:tokens=24", "no scheme of ours"),
        ("hadamard(asym4:group_size=16):block=32", "32"),
    ],
)
def test_schemes_that_cannot_be_used(task_model, refused, scheme, message):
    with refused(message):
        SchemeLM(task_model, scheme)
    with refused("feed_last is -1"):
        SchemeLM(task_model, "exact", feed_last=-1)


def test_a_tokenizer_without_an_end_is_refused(model, files, refused):
    from kvdelta.harness.subject.model import load_model

    with refused("no token that ends a text"):
        SchemeLM(load_model(str(files / "model")))
