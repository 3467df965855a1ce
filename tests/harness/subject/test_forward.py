"""Whatever transformers calls the argument, nobody is warned of it."""

import logging
import warnings

import pytest
import torch
import transformers

from kvdelta.harness import SchemeCache
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.schemes import parse_scheme


@pytest.fixture
def said():
    """What transformers logs, whatever was said before."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_the_name_is_the_newest_that_forward_takes(model):
    renamed = hasattr(transformers.modeling_outputs.CausalLMOutputWithPast, "cache")
    assert cache_keyword(model) == ("cache" if renamed else "past_key_values")


def test_neither_a_forward_nor_generate_warns(model, said):
    tokens = torch.randint(1, 100, (1, 8))
    cache = SchemeCache(parse_scheme("int4:group_size=16"), model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward(model, tokens, cache, logits_to_keep=1)
        more = torch.cat([tokens, tokens], dim=1)
        options = {"attention_mask": torch.ones_like(more), "max_new_tokens": 4, cache_keyword(model): cache}
        model.generate(more, **options)
    assert said == []
    assert cache.get_seq_length() == 19
