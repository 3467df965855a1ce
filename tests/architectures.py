"""Tiny random models of many architectures, built when asked for."""

from typing import Any

import torch
import transformers

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that attention looks at the cache
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WIDE = {"intermediate_size": 48}
SHARED = {**WIDE, "num_key_value_heads": 1}  # grouped-query attention
HEAD = {**SHARED, "head_dim": 16}
ALTERNATING = {**HEAD, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    **WIDE,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}

FIELDS: dict[str, dict[str, Any]] = {
    "Llama": SHARED,
    "Qwen2": SHARED,
    "Qwen3": HEAD,
    "Mixtral": {**HEAD, "num_local_experts": 4},
    "Phi": WIDE,
    "Phi3": SHARED,
    "StableLm": SHARED,
    "GPTNeoX": WIDE,
    "Glm": HEAD,
    "Gemma2": {**ALTERNATING, "query_pre_attn_scalar": 16},
    "Gemma3Text": {**ALTERNATING, "query_pre_attn_scalar": 16},
    "Gemma3nText": {
        **ALTERNATING,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "Cohere2": ALTERNATING,  # its full-attention layers rotate no keys
    "SmolLM3": {**SHARED, "no_rope_layers": [1, 0]},
    "GptOss": {**ALTERNATING, "num_local_experts": 4},
    "GPT2": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTBigCode": {},
    "GPTJ": {"rotary_dim": 8},
    "Falcon": {"multi_query": True, "new_decoder_architecture": False},
    "Falcon with ALiBi": {"alibi": True, "multi_query": False, "new_decoder_architecture": False},
    "Bloom": {},
    "Mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 512},
    "DeepseekV2": LATENT,
    "DeepseekV3": LATENT,
    "Qwen3Next": {
        **HEAD,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Lfm2": {**SHARED, "layer_types": ["conv", "full_attention"]},
    "Jamba": {
        **SHARED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "num_experts": 2,
    },
    "FalconH1": {**HEAD, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1},
    "RecurrentGemma": {**SHARED, "num_hidden_layers": 3, "attention_window_size": 32},
    "Mamba": {"state_size": 4},
    "Mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "Rwkv": {"attention_hidden_size": 32},
    "Bert": WIDE,
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
}


def tiny(name: str, **changes: Any) -> Any:
    """A random model in eval mode, the same at every call. name: of FIELDS, its first word that of a config class."""
    config = getattr(transformers, name.split()[0] + "Config")(**{**COMMON, **FIELDS[name], **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
