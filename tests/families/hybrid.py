"""Decoders some of whose layers keep a recurrent state or a convolution's last inputs in place of keys and values."""

from tests.families.dense import GRANITE
from tests.families.family import Family
from tests.families.sparse import EXPERTS, GROUPED, LATENT, LOCAL

KINDS = ["linear_attention", "linear_attention", "full_attention"] * 2
LINEAR = {
    "layer_types": KINDS, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 24}
# the module that predicts one token more, with a norm of its own
MTP = {"mtp.norm.weight": (32,), "mtp.fc.weight": (32, 64), "mtp.layers.0.input_layernorm.weight": (32,)}
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
KIMI = {
    **LATENT, "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 24, "linear_head_dim": 8, "linear_num_heads": 4,
    "layer_types": KINDS,
}  # fmt: skip
GRANITE_H = {
    **GRANITE, **LOCAL, **MAMBA2, "shared_intermediate_size": 24, "layer_types": ["mamba", "mamba", "attention"] * 2,
    "tie_word_embeddings": True,
}  # fmt: skip
NEMOTRON_H = {
    **GROUPED, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "mlp"], "ssm_state_size": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
}  # fmt: skip
FALCON_H1 = {
    **MAMBA2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0, "key_multiplier": 0.6,
    "attention_out_multiplier": 0.8, "ssm_out_multiplier": 0.7,
}  # fmt: skip
JAMBA = {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 3, "attn_layer_offset": 2, "mamba_d_state": 8}
LFM2 = {"layer_types": ["conv", "conv", "full_attention"] * 2, "tie_word_embeddings": True}


def one_by_one(model_type: str, examples: str, values: dict, extra: dict | None = None) -> Family:
    """A state has no rows, so sequences of different lengths cannot lie in one cache and be cut each for itself."""
    return Family(model_type, examples, values, extra=extra or {}, together=False)


HYBRID = {
    "qwen3_next": one_by_one("qwen3_next", "Qwen3-Next 80B-A3B, Qwen3-Coder-Next", {**LINEAR, **SHARED_EXPERT}, MTP),
    "qwen3_5_text": one_by_one("qwen3_5_text", "Qwen3.5, 3.6 dense, text alone", LINEAR, MTP),
    "qwen3_5_moe_text": one_by_one("qwen3_5_moe_text", "Qwen3.5, 3.6 MoE, text alone", {**LINEAR, **SHARED_EXPERT}, MTP),
    "kimi_linear": one_by_one("kimi_linear", "Kimi Linear 48B-A3B", KIMI),
    "granitemoehybrid": one_by_one("granitemoehybrid", "Granite 4.0 H", GRANITE_H),
    "nemotron_h": one_by_one("nemotron_h", "Nemotron-H, Nemotron 3 Nano", NEMOTRON_H),
    "lfm2": one_by_one("lfm2", "LFM2 350M to 2.6B", LFM2),
    "falcon_h1": one_by_one("falcon_h1", "Falcon-H1", FALCON_H1),
    "bamba": one_by_one("bamba", "Bamba 9B", {**MAMBA2, "attn_layer_indices": [2, 5]}),
    "jamba": one_by_one("jamba", "Jamba 1.5, 1.6, Jamba Reasoning 3B", JAMBA),
}
