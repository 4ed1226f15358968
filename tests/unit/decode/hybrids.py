"""Tiny random targets with recurrent or convolution states, one of each family that Transformers computes in its own way.

Weights are large, so that text varies; norms are no ones; windows are shorter than the texts.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.unit.tiny import VOCABULARY

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.2, "dtype": "float32",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
DELTA = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
NO_FLOOR = 1e-9  # Transformers applies it to several tokens, and not to one
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
FAMILIES = {
    "qwen3_next": DELTA | EXPERTS,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | EXPERTS,
    "olmo_hybrid": DELTA,
    "granitemoehybrid": MAMBA2
    | {
        "layer_types": ["mamba", "attention", "mamba", "mamba"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32, "position_embedding_type": "rope",
    },
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 64},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"], "mamba_num_heads": 4,
        "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "time_step_min": NO_FLOOR,
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "mamba_d_state": 8, "mamba_headdim": 16,
        "mamba_ngroups": 1, "n_mamba_heads": 4, "attention_head_dim": 16, "attention_hidden_size": 64, "use_mem_rope": True,
        "num_mem_blocks": 1, "adapter_rank": 4, "time_step_min": NO_FLOOR,
    },
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": None,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "linear_num_heads": 4, "linear_head_dim": 8, "num_experts": 4,
        "num_experts_per_token": 2, "moe_intermediate_size": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "zaya": {  # a state and a window in the same layers
        "layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": 8, "router_hidden_size": 16, "num_experts": 4,
        "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    },
}  # fmt: skip
REFUSED = {
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention", "linear_attention"] * 2},
    "recurrent_gemma": {"attention_window_size": 8},  # its states are in its modules, where no cache reaches
}
ONE_BY_ONE = {"jamba"}  # starts its recurrence anew when it is given several tokens


def write_hybrid(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE | (FAMILIES | REFUSED)[family]), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder
