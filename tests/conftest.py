"""The annotations of `schemes`, shapes included, are checked in every test; everything is seeded. And a tiny random
model, with windows for it: the real path in miniature."""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import beartype.typing
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The hook decorates methods one by one, where beartype cannot know what `Self` is: that one hint is not checked.
# The numeric tower: where a float is asked for, a whole number is welcome.
CHECKER = """beartype.beartype(conf=beartype.BeartypeConf(
    is_pep484_tower=True, hint_overrides=beartype.FrozenDict({beartype.typing.Self: object})
))"""
assert beartype.typing
install_import_hook("schemes", CHECKER)  # before anything imports schemes

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():  # without a device torch.manual_seed keeps a traceback of each call for later
        torch.cuda.manual_seed_all(0)


VOCABULARY = 128


TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SHARP = {"initializer_range": 0.2}  # large, so that attention looks at the cache and quantization shows


def tiny_config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINY, **SHARP, **changes})


@pytest.fixture(scope="session")
def model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval().requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randint(1, VOCABULARY, (900,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def subject(model, tokens):
    """What `prepare` would load, around the tiny model: windows of 96 + 32 tokens."""
    from harness.comparison import Subject
    from harness.model import LoadedModel
    from harness.text import Text
    from harness.windows import cut_windows

    tokenizer = SimpleNamespace(bos_token_id=None)
    loaded = LoadedModel(model, tokenizer, "tiny", {"kind": "test"})
    windows = cut_windows(tokens, window_length=128, score_length=32, windows=3)
    return Subject(loaded, Text("random", "", {"kind": "test"}), tokens, windows, None)


@pytest.fixture
def options(tmp_path):
    from harness.comparison import Options

    return Options(window_length=128, score_length=32, windows=3, device="cpu", out=str(tmp_path / "run"))


@pytest.fixture
def refused():
    """Bad input: a ValueError of one line that matches."""

    @contextmanager
    def refused(message):
        with pytest.raises(ValueError, match=message) as error:
            yield
        assert "\n" not in str(error.value)

    return refused
