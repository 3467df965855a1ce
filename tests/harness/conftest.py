"""A tiny random model, and a word-level tokenizer and text for it: the real path in miniature."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 128


def tiny_config(**changes):
    fields = {
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
        "initializer_range": 0.2,  # large, so that attention looks at the cache and quantization shows
    }
    return LlamaConfig(**{**fields, **changes})


@pytest.fixture(scope="session")
def model():
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
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KVDELTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def refused():
    """Bad input: a ValueError of one line that matches."""

    @contextmanager
    def refused(message):
        with pytest.raises(ValueError, match=message) as error:
            yield
        assert "\n" not in str(error.value)

    return refused


@pytest.fixture
def free_bytes(monkeypatch):
    """Pretend that so many bytes are free on every disk."""

    def pretend(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    return pretend
