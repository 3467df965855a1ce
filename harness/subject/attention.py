"""Attention of few queries over many keys with the kernel of a prefill.

transformers gives a suffix over a filled cache a mask, and torch's fast kernel (FlashAttention, Dao 2023, arXiv 2307.08691)
takes none: it falls to a slower one, for which each KV head is also copied once for every query head that shares it. Where
the mask says no more than that a token does not see later ones, the fast kernel needs only to know that the queries are the
last tokens. A short step over shared heads has a kernel of its own (`attention_kernel`). On a CPU torch's kernel takes a mask, and query heads that share a KV head: the copies alone are left out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from kvdelta.schemes import kernels

NAME = "sdpa-lower-right"
SHARED = "sdpa-shared-heads"
HALF = (torch.float16, torch.bfloat16)  # what the fast kernel computes with
WIDEST = 256  # channels of a head that it takes
SHORT = 32  # new tokens of a step for which there is a kernel of its own
NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""For a step of one token: cuDNN, which torch 2.11 prefers on an H100, prepares 36 to 56 ms for every new number of keys, and
for shared heads its results differ from run to run."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' function of an attention implementation; [batch, heads, tokens, channels] to [batch, tokens, heads,
    channels]."""
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and queries == 1:
        with sdpa_kernel(NOT_CUDNN):
            output = torch.nn.functional.scaled_dot_product_attention(_packed(query, key), key, value, scale=scaling)
        return output.flatten(1, 2).unsqueeze(1), None
    if attention_mask is not None or not 1 < queries < keys:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    shared = query.shape[1] != key.shape[1]
    if shared and queries <= SHORT and kernels.available(key.device, key.numel()):
        from kvdelta.harness.subject import attention_kernel

        if attention_kernel.takes(query, key, value):
            return attention_kernel.attend(query, key, value, scaling or query.shape[3] ** -0.5), None
    bias: Any = causal_lower_right(queries, keys)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scaling, enable_gqa=shared
    )
    return output.transpose(1, 2).contiguous(), None


def _packed(query: Tensor, key: Tensor) -> Tensor:
    """Of one token, the query heads that share a KV head as its queries: one read of the head serves them all."""
    return query.unflatten(1, (key.shape[1], -1))[:, :, :, 0]


def attend_shared(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `attend`; bit for bit what transformers' function gives."""
    alike = query.shape[1] == key.shape[1] or query.shape[2] == 1
    if attention_mask is None or alike or any(kwargs.get(name) is not None for name in ("softcap", "position_bias")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


def mask(**words: Any) -> Tensor | None:
    """None where `attend` knows what the mask would say: causal, the queries last, nothing padded. words: as transformers
    calls the mask function of an attention implementation."""
    causal = words.get("mask_function") is causal_mask_function and words.get("allow_is_causal_skip", True)
    first = words.get("q_offset")
    last = isinstance(first, int) and first + words["q_length"] == words["kv_offset"] + words["kv_length"]
    if causal and last and words.get("attention_mask") is None:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](**words)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)
AttentionInterface.register(SHARED, attend_shared)
AttentionMaskInterface.register(SHARED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def use_where_it_pays(model: Any) -> None:
    """Of a model that asks for torch's attention: on a GPU in half precision, on a CPU where query heads share KV heads."""
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa":
        return
    heads = config.num_attention_heads
    if model.device.type == "cpu" and getattr(config, "num_key_value_heads", None) not in (None, heads):
        model.set_attn_implementation(SHARED)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if model.device.type == "cuda" and model.dtype in HALF and width <= WIDEST:
        model.set_attn_implementation(NAME)
