"""Tiny random models of many architectures, loud enough that wrong rotations show."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LOUD = ("q_proj", "k_proj", "qkv", "query_key_value")
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_SLIDING: dict[str, Any] = {"sliding_window": 24, "layer_types": _MIXED}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_linear": ("llama", _rope("linear", factor=4.0)),
    "llama_yarn": (
        "llama",
        _rope("yarn", factor=4.0, original_max_position_embeddings=128),
    ),
    "llama_llama3": (
        "llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama_dynamic": ("llama", _rope("dynamic", factor=2.0)),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2_sliding": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **_SLIDING}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_EXPERTS, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "decoder_sparse_step": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_sliding": ("mistral", {"sliding_window": 24}),
    "mixtral": ("mixtral", {**_LOCAL_EXPERTS, "sliding_window": 24}),
    "ministral": ("ministral", _SLIDING),
    "ministral3": (
        "ministral3",
        _rope("yarn", factor=4.0, original_max_position_embeddings=128, llama_4_scaling_beta=0.1),
    ),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": 24}),
    "phi3_longrope": (
        "phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 128,
            **_rope(
                "longrope",
                short_factor=[1.0 + 0.1 * i for i in range(8)],
                long_factor=[2.0 + 0.3 * i for i in range(8)],
                original_max_position_embeddings=128,
            ),
        },
    ),
    "phimoe": ("phimoe", _LOCAL_EXPERTS),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {**_SLIDING, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    ),
    "gemma3_text": ("gemma3_text", {**_SLIDING, "query_pre_attn_scalar": 16}),
    "vaultgemma": ("vaultgemma", {**_SLIDING, "attn_logit_softcapping": 5.0}),
    "olmo": ("olmo", {"clip_qkv": 6.0}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", _SLIDING),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "flex_olmo": ("flex_olmo", {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2}),
    "granite": ("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.7}),
    "granitemoe": ("granitemoe", {**_LOCAL_EXPERTS, "attention_multiplier": 0.3}),
    "granitemoeshared": (
        "granitemoeshared",
        {**_LOCAL_EXPERTS, "attention_multiplier": 0.3, "shared_intermediate_size": 24},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 24}),
    "exaone4": ("exaone4", {**_SLIDING, "sliding_window_pattern": 2}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "glm4_moe": (
        "glm4_moe",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "use_qk_norm": True,
            "first_k_dense_replace": 1,
        },
    ),
    "cohere": ("cohere", {"use_qk_norm": True, "logit_scale": 1.0}),
    "cohere2": ("cohere2", {**_SLIDING, "logit_scale": 1.0}),
    "gpt_oss": ("gpt_oss", {**_LOCAL_EXPERTS, **_SLIDING}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "seed_oss": ("seed_oss", {}),
    "helium": ("helium", {}),
    "nemotron": ("nemotron", {}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    "dots1": (
        "dots1",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            **_SLIDING,
        },
    ),
    "bitnet": ("bitnet", {}),
    "persimmon": ("persimmon", {}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "nanochat": ("nanochat", {}),
    "minimax_m2": ("minimax_m2", {**_LOCAL_EXPERTS}),
    "jais2": ("jais2", {}),
    "afmoe": ("afmoe", {**_SLIDING, "num_dense_layers": 3}),
    "cwm": ("cwm", _SLIDING),
    "hyperclovax": ("hyperclovax", {}),
    "modernbert_decoder": ("modernbert-decoder", {"local_attention": 32}),
    "granite_swa": ("granite_swa", {**_SLIDING, "attention_multiplier": 0.3}),
    "flint": ("flint", _SLIDING),
    "jetmoe": ("jetmoe", {"num_local_experts": 2, "num_experts_per_tok": 1, "kv_channels": 16}),
}

_SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_MAMBA: dict[str, Any] = {
    **SIZES,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
_MLA: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
_STATE = "keep state outside attention"

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "lfm2": ({**SIZES, "layer_types": ["conv", "full_attention", "conv"]}, "short convolutions"),
    "mamba": ({"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}, _STATE),
    "rwkv": ({"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}, _STATE),
    "jamba": (
        {**SIZES, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        _STATE,
    ),
    "falcon_h1": ({**SIZES, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}, _STATE),
    "bamba": ({**_MAMBA, "attn_layer_indices": [1]}, _STATE),
    "granitemoehybrid": (
        {**_MAMBA, **_LOCAL_EXPERTS, "layer_types": ["mamba", "attention", "mamba"]},
        _STATE,
    ),
    "qwen3_next": (
        {
            **SIZES,
            **_EXPERTS,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        _STATE,
    ),
    "recurrent_gemma": ({**SIZES, "lru_width": 64, "attention_window_size": 16}, _STATE),
    "deepseek_v2": (_MLA, "latent attention"),
    "deepseek_v3": (_MLA, "latent attention"),
    "gpt2": (
        {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "learned or sinusoidal position embeddings",
    ),
    "opt": ({**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, "learned or sinusoidal"),
    "bloom": ({"vocab_size": 200, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "mpt": ({"vocab_size": 200, "d_model": 32, "n_layers": 2, "n_heads": 4}, "ALiBi"),
    "gptj": (
        {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        "attention interface",
    ),
    "falcon": (_SMALL, "attention interface"),
    "llama4_text": (
        {**SIZES, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 32},
        "chunked attention",
    ),
    "gemma3n_text": (
        {
            **SIZES,
            "num_kv_shared_layers": 1,
            "vocab_size_per_layer_input": 200,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": None,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
        "share the keys and values",
    ),
    "hunyuan_v1_dense": (SIZES, "not a known rotation"),
    "diffllama": (SIZES, "more than once"),
    "mimo_v2_flash": ({**SIZES, **_EXPERTS}, "differ in shape"),
    "bert": ({**_SMALL, "intermediate_size": 48, "is_decoder": True}, "learned or sinusoidal"),
}


def build(name: str, *, shaken: bool = True, **changes: Any) -> PreTrainedModel:
    """A random model (float32 unless `dtype` is given), its weights far from their initial values."""
    kind, values = HELD[name]
    return build_kind(kind, shaken=shaken, **{**values, **changes})


def build_kind(
    kind: str,
    *,
    shaken: bool = True,
    own_sizes: bool = False,
    dtype: torch.dtype = torch.float32,
    **values: Any,
) -> PreTrainedModel:
    """As `build`, by transformers' model type and settings (with `own_sizes`, no others)."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**(values if own_sizes else {**SIZES, **values}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    model.eval()
    if shaken:
        shake(model)
    return model


def shake(model: PreTrainedModel) -> None:
    """Give norms, biases and sinks values that matter, and make attention far from uniform."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.add_(0.3 * noise)
            else:
                gain = 1.5 if any(part in name for part in _LOUD) else 1.0
                weight.copy_(gain * noise / weight.shape[-1] ** 0.5)
