"""Decoders whose feed-forward layers are experts; their attention is full, sliding or latent."""

from tests.families.dense import GRANITE, WINDOW
from tests.families.family import VOCABULARY, Family

# latent attention (MLA): keys and values of every head from one narrow row
LATENT = {
    "num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
GROUPED = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHIFTED = "SGLang shifts the layer ids of an EAGLE-3 draft unless the first is 1"
# the layer that predicts one token more, behind the decoder's own six, with an embedding, norms and a head of its own
NEXT = {
    "model.layers.6.embed_tokens.weight": (VOCABULARY, 32), "model.layers.6.shared_head.head.weight": (VOCABULARY, 32),
    "model.layers.6.shared_head.norm.weight": (32,), "model.layers.6.enorm.weight": (32,),
}  # fmt: skip
LLAMA4 = {
    **LOCAL, "intermediate_size_mlp": 48, "moe_layers": [1, 3, 5], "attention_chunk_size": 16, "no_rope_layer_interval": 3,
    "floor_scale": 8,
}  # fmt: skip

YARN = {
    "rope_type": "yarn", "rope_theta": 1.5e5, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 16,
}  # fmt: skip
GLM = {**GROUPED, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "use_qk_norm": True, "partial_rotary_factor": 0.5}
DEEPSEEK = {**LATENT, **GROUPED, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
LITE = {**LATENT, **GROUPED, "moe_intermediate_size": 24}

SPARSE = {
    "llama4_text": Family("llama4_text", "Llama 4, text alone", LLAMA4, together=False),
    "mixtral": Family("mixtral", "Mixtral 8x7B", {**LOCAL, "sliding_window": None}),
    "qwen2_moe": Family("qwen2_moe", "Qwen1.5-MoE, Qwen2 57B-A14B", {**EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": Family("qwen3_moe", "Qwen3 30B-A3B, 235B-A22B, Qwen3-Coder", {**EXPERTS, "norm_topk_prob": True}),
    "gpt_oss": Family("gpt_oss", "gpt-oss 20B, 120B", {**LOCAL, **WINDOW, "rope_parameters": YARN}, together=False),
    "glm4_moe": Family("glm4_moe", "GLM-4.5, 4.6, 4.7", GLM, extra=NEXT),
    "glm4_moe_lite": Family("glm4_moe_lite", "GLM-4.7 Flash", LITE, extra=NEXT, notes=(SHIFTED,)),
    "deepseek_v3": Family("deepseek_v3", "DeepSeek V3, R1, V3.1; Kimi K2", DEEPSEEK, extra=NEXT, notes=(SHIFTED,)),
    "minimax_m2": Family("minimax_m2", "MiniMax M2", {**LOCAL, "rotary_dim": 4}),
    "granitemoe": Family("granitemoe", "Granite 3.x MoE", {**GRANITE, **LOCAL, "tie_word_embeddings": True}),
    "olmoe": Family("olmoe", "OLMoE 1B-7B", {"num_experts": 4, "num_experts_per_tok": 2}),
    "hunyuan_v1_moe": Family("hunyuan_v1_moe", "Hunyuan A13B", {"num_experts": 4, "moe_topk": 2, "tie_word_embeddings": True}),
}
