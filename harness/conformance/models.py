"""Tiny random models that a cache is tried on: full attention, with a sliding window beside it, with a convolution beside it."""

import functools
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Lfm2Config, LlamaConfig

PROMPT = 240  # tokens, of two rows: more than the residual windows of usual caches, and some steps before 256
SHORTER = 224  # of one row: two KV heads of so many tokens divide by usual groups
LONGEST = 384  # tokens that a cache of fixed length has to hold
WINDOW = 48  # tokens that a sliding layer attends to
VOCABULARY = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that attention looks at the cache
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,  # else its embedding is 0, and its keys are
}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


@functools.cache
def full() -> Any:
    """Full attention, two query heads to a KV head."""
    return _model(LlamaConfig(**LLAMA))


@functools.cache
def calm() -> Any:
    """The same, and attention looks at all tokens alike: what it gives is nearer to what an exact cache gives."""
    return _model(LlamaConfig(**{**LLAMA, "initializer_range": 0.05}))


@functools.cache
def sliding() -> Any:
    """A layer with a sliding window, then one with full attention."""
    kinds = ["sliding_attention", "full_attention"]
    return _model(Gemma3TextConfig(**SIZES, head_dim=64, sliding_window=WINDOW, layer_types=kinds))


@functools.cache
def convolving() -> Any:
    """A layer whose state is no keys and values, then one with full attention."""
    return _model(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]))


@functools.cache
def assistant() -> Any:
    """Like `full`, but not quite, so that some of what it drafts is taken and some is not."""
    model = _model(LlamaConfig(**LLAMA))
    noise = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.add_(0.02 * torch.randn(weight.shape, generator=noise))
    model.generation_config.num_assistant_tokens = 4
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


def model_of(config: Any) -> Any:
    """The model that a config belongs to, of those that a factory is given."""
    return next(model for model in (full(), calm(), sliding(), convolving()) if model.config is config)


def _model(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def prompt(rows: int, tokens: int = PROMPT) -> Int64[Tensor, "rows tokens"]:
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(2))


def repeating() -> Int64[Tensor, "1 tokens"]:
    """A prompt whose end was there before, so that a look-up in it finds drafts."""
    return prompt(1, 11).repeat(1, SHORTER // 11 + 1)[:, :SHORTER]
