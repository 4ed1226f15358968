"""Tiny random targets whose way from the last layer to the logits is unlike Llama's. Every weight is random: norms of one hide a slip."""

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
TEXT = {
    "gemma2": {"final_logit_softcapping": 5.0, "tie_word_embeddings": True, "sliding_window": 8},
    "gemma3_text": {"tie_word_embeddings": True, "sliding_window": 8},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "minicpm3": {**LATENT, "dim_model_base": 8, "scale_emb": 12},
    "cohere2": {"tie_word_embeddings": True, "logit_scale": 0.25},
    "stablelm": {},
    "nemotron": {},
    "olmo": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "bamba": {**STATE, "attn_layer_indices": [1, 3]},
    "qwen3_5_text": LINEAR,
    "llama4_text": {"intermediate_size_mlp": 32, "num_local_experts": 4, "moe_layers": [1, 3]},
}  # fmt: skip
UNLIKE = {  # whose layers, or whose way with them, no other family has
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 0, "laurel_rank": 4,
        "activation_sparsity_pattern": None, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "patch_size": 4, "image_size": 16,
}  # fmt: skip
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
WRAPPERS = {  # -> the text model's settings, the vision tower's
    "gemma3": (TEXT["gemma3_text"], {"model_type": "siglip_vision_model"}),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral"}),
    "qwen2_5_vl": (SECTIONS, {}),
    "qwen3_vl": (SECTIONS, {}),
    "qwen3_5": (LINEAR, {}),
}
FAMILIES = (*TEXT, *WRAPPERS)


def write_family(family: str, folder: Path) -> Path:
    if family not in WRAPPERS:
        kind, config = AutoModelForCausalLM, CONFIG_MAPPING[family](**{**SHAPE, **(TEXT | UNLIKE)[family]})
    else:
        text, vision = WRAPPERS[family]
        tied = text.get("tie_word_embeddings", False)
        vision = {key: value for key, value in {**VISION, **vision}.items() if vision or key != "num_hidden_layers"}
        kind = AutoModelForImageTextToText
        config = CONFIG_MAPPING[family](text_config={**SHAPE, **text}, vision_config=vision, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = kind.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder
