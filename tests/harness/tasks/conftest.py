"""A tiny random model that reads bytes, so that it can be fed any task, and a text to hide things in."""

import pytest

from kvdelta.harness.subject.model import LoadedModel

from ...conftest import tiny_config

SENTENCES = [f"Sentence {i} of a long and quiet story is about the {i}th day." for i in range(40)]


def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def loaded(tokenizer):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(vocab_size=256, max_position_embeddings=4096))
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, "tiny", {"kind": "test"})


@pytest.fixture(scope="session")
def story(tmp_path_factory):
    path = tmp_path_factory.mktemp("story") / "story.txt"
    path.write_text(" ".join(SENTENCES))
    return path
