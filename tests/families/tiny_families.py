"""Tiny random models of every causal family that the installed transformers knows."""

import torch

VOCABULARY = 128
SEQ2SEQ = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5")
SMALL = {  # config fields, whatever a family calls them
    "hidden_size d_model n_embd dim model_dim embedding_size": 64,
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers": 4,
    "num_attention_heads n_head n_heads num_heads attention_heads": 4,
    "decoder_attention_heads encoder_attention_heads swa_num_attention_heads": 4,
    "num_key_value_heads num_query_groups swa_num_key_value_heads": 2,
    "head_dim kv_channels attention_head_dim d_kv v_head_dim swa_head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size dense_intermediate_size": 96,
    "decoder_ffn_dim encoder_ffn_dim shared_intermediate_size intermediate_size_mlp": 96,
    "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size": 32,
    "moe_shared_expert_intermediate_size moe_dense_intermediate_size": 32,
    "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts": 4,
    "num_experts_per_tok num_experts_per_token top_k_experts moe_k moe_topk moe_top_k": 2,
    "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank q_lora_rank": 16,
    "qk_rope_head_dim qk_nope_head_dim rotary_dim": 8,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length seq_length": 512,
    "sliding_window attention_window_size attention_window local_attention": 8,
    "word_embed_proj_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim linear_value_head_dim linear_head_dim": 16,
    "state_size mamba_d_state ssm_state_size d_state": 8,
    "mamba_n_heads mamba_num_heads n_mamba_heads": 4,
    "mamba_d_head mamba_head_dim": 32,
    "lru_width": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FIELDS = {name: value for names, value in SMALL.items() for name in names.split()}


HEADS = {"head_dim": 16}
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
OVERRIDES = {  # what a family cannot do without, beside FIELDS
    "axk1 axk2 deepseek_v3 deepseek_v32 glm_moe_dsa longcat_flash youtu": LATENT,
    "hunyuan_v1_dense hunyuan_v1_moe ministral": HEADS,
    "nemotron qwen4_exp qwen4_exp_text": {"head_dim": 16, "num_key_value_heads": 2},
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2, "n_routed_experts": 4, "moe_layer_freq": 1},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note_text": {**LATENT, "head_dim": 32, "per_layer_config": {}, "index_n_heads": 4},
    "bailing_hybrid": {**LATENT, "num_expert_group": 1, "linear_num_heads": 4},
    "nemotron_h": {"n_groups": 2},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "ctrl": {"dff": 96},
    "lfm2 lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 4},
}
OVERRIDES = {name: more for names, more in OVERRIDES.items() for name in names.split()}


def small_config(kind):
    """A config class's default at a tiny size, its parts likewise."""
    default = kind()
    known = default.to_dict()
    given = {name: value for name, value in FIELDS.items() if known.get(name) is not None}
    given |= {n: FIELDS[n] for n in ("pad_token_id", "bos_token_id", "eos_token_id")}
    for name, part in (getattr(default, "sub_configs", None) or {}).items():
        if hasattr(part, "model_type") and getattr(default, name, None) is not None:
            given[name] = small_config(part).to_dict()
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(known.get(name), list):
            given[name] = _four_layers(known[name])
    return kind(**{**given, **OVERRIDES.get(kind.model_type, {})})


def _four_layers(kinds: list[str]) -> list[str]:
    """Four layers with every kind that the family has by default, in its order."""
    distinct = list(dict.fromkeys(kinds))
    return sorted((distinct * 4)[:4], key=distinct.index) if len(distinct) < 5 else distinct[:4]


def random_model(config, kind, seed: int = 0):
    """A model of random weights, its logits spread far enough for safe argmaxes."""
    model = kind.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def families() -> list[str]:
    """Model types of AutoModelForCausalLM, and encoder-decoder ones of AutoModelForSeq2SeqLM."""
    from transformers.models.auto import modeling_auto as auto

    causal = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return sorted(causal | set(SEQ2SEQ))
