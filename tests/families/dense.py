"""Dense decoders whose layers are attention, full or sliding."""

from tests.families.family import VOCABULARY, Family

SLIDING = ["sliding_attention", "full_attention"] * 3
WINDOW = {"sliding_window": 8, "layer_types": SLIDING}
UNROTATED = "llama.cpp leaves llama3's scaling of RoPE out of a DFlash draft"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
LONGROPE = {  # all of the text is beyond the length at which the long factors take over
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 8,
}  # fmt: skip
SCALED = "SGLang scales the embedding that a DFlash draft reads"
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
MINICPM3 = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 16,
}  # fmt: skip
GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA4 = {
    **WINDOW, "tie_word_embeddings": True, "global_head_dim": 16, "final_logit_softcapping": 3.0, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
# an embedding for every layer; the last two layers read the keys and values of earlier ones
PER_LAYER = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}

DENSE = {
    "llama": Family("llama", "Llama 3.1, 3.3", {"rope_parameters": LLAMA3}, notes=(UNROTATED,)),
    "llama, tied": Family("llama", "Llama 3.2, SmolLM2", {"tie_word_embeddings": True}),
    "mistral": Family("mistral", "Mistral 7B v0.3, Nemo", {"sliding_window": None}),
    "mistral, sliding": Family("mistral", "Mistral 7B v0.1", {"sliding_window": 8}, together=False),
    "ministral": Family("ministral", "Ministral 8B (2410)", WINDOW, together=False),
    "ministral3": Family("ministral3", "Ministral 3, text", {"rope_parameters": YARN}),
    "qwen2": Family("qwen2", "Qwen2.5, QwQ 32B"),
    "qwen3": Family("qwen3", "Qwen3 0.6B to 32B"),
    "gemma2": Family(
        "gemma2", "Gemma 2", {**GEMMA, **WINDOW, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, together=False
    ),
    "gemma3_text": Family("gemma3_text", "Gemma 3 270M, 1B", {**GEMMA, **WINDOW}, together=False),
    "gemma4_text": Family("gemma4_text", "Gemma 4 E2B, E4B, text alone", {**GEMMA4, **PER_LAYER}, together=False, notes=(SCALED,)),
    "glm4": Family("glm4", "GLM-4 9B, 32B (0414)", {"partial_rotary_factor": 0.5}),
    "granite": Family("granite", "Granite 3.x", {**GRANITE, "tie_word_embeddings": True}),
    "minicpm3": Family("minicpm3", "MiniCPM3 4B", MINICPM3),
    "phi": Family("phi", "Phi-1.5, Phi-2", refused="its head adds a bias"),
    "phi3": Family("phi3", "Phi-3 of 4K", {"sliding_window": 8}, together=False),
    "phi3, longrope": Family("phi3", "Phi-4 mini, Phi-3 of 128K", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "olmo2": Family("olmo2", "OLMo 2"),
    "olmo3": Family("olmo3", "OLMo 3", WINDOW, together=False),
    "cohere": Family("cohere", "Command R", {"logit_scale": 0.5, "tie_word_embeddings": True, "use_qk_norm": True}),
    "cohere2": Family("cohere2", "Command R7B, Command A", {**WINDOW, "logit_scale": 0.5, "tie_word_embeddings": True}, together=False),
    "stablelm": Family("stablelm", "StableLM 2", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "starcoder2": Family("starcoder2", "StarCoder2", {"tie_word_embeddings": True, "sliding_window": 8}, together=False),
    "nemotron": Family("nemotron", "Nemotron 4, Minitron", {"partial_rotary_factor": 0.5}),
    "exaone4": Family("exaone4", "EXAONE 4.0", {**WINDOW, "sliding_window_pattern": 2}, together=False),
    "ernie4_5": Family("ernie4_5", "ERNIE 4.5 0.3B", {"tie_word_embeddings": True}),
    "seed_oss": Family("seed_oss", "Seed-OSS 36B"),
    "smollm3": Family("smollm3", "SmolLM3 3B", {"tie_word_embeddings": True, "no_rope_layer_interval": 2}),
    "apertus": Family("apertus", "Apertus 8B, 70B", {"rope_parameters": LLAMA3}),
    "arcee": Family("arcee", "AFM 4.5B"),
    "helium": Family("helium", "Helium 1"),
    "hunyuan_v1_dense": Family("hunyuan_v1_dense", "Hunyuan 0.5B to 7B", {"tie_word_embeddings": True}),
    "internlm3": Family("internlm3", "InternLM3 8B", published_as="InternLM3ForCausalLM", notes=("Transformers runs it as a Llama",)),
}
