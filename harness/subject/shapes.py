"""Models of a known shape with random weights: what takes as long as a real one, where only time is asked for."""

from typing import TYPE_CHECKING, Any

import torch

from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    # as in the config.json of Llama 3.1 8B
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


def shaped_model(shape: str, device: str | torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """Weights drawn with seed 0. UserError: no such shape."""
    if shape not in SHAPES:
        raise UserError(f"no shape {shape!r}; there is {', '.join(SHAPES)}")
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvdelta.harness.subject import attention

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    attention.use_where_it_pays(model)
    return model
