"""Models that also see images: their text model is the target."""

from tests.families.dense import GEMMA, GEMMA4, PER_LAYER, WINDOW, YARN
from tests.families.family import Family
from tests.families.hybrid import LINEAR, MTP
from tests.families.sparse import EXPERTS, GROUPED, LATENT, LOCAL, LLAMA4

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN_TOWER = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
GEMMA4_TOWER = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "position_embedding_size": 16,
}  # fmt: skip
STACKED = {**QWEN_TOWER, "deepstack_visual_indexes": [0]}
PLACES = {"image_token_id": 122, "video_token_id": 123, "vision_start_token_id": 124, "vision_end_token_id": 125}
PLACE = {"image_token_index": 122}
# rotary positions of time, height and width; a text's three are equal
SECTIONS = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1]}
PARTIAL = {
    **SECTIONS, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5,
}  # fmt: skip

IMAGES = {
    "llama4": Family("llama4", "Llama 4 Scout, Maverick", LLAMA4, vision={
        **TOWER, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}, more=PLACE),
    "mistral3": Family("mistral3", "Mistral Small 3.1 to 3.2", {"model_type": "mistral"}, vision={**TOWER, "model_type": "pixtral"},
        more=PLACE),
    "mistral3 of ministral3": Family("mistral3", "Ministral 3, Mistral Large 3", {"model_type": "ministral3", "rope_parameters": YARN},
        vision={**TOWER, "model_type": "pixtral"}, more=PLACE),
    "qwen2_5_vl": Family("qwen2_5_vl", "Qwen2.5-VL", {"rope_parameters": {**SECTIONS, "rope_type": "default"}}, vision={
        **QWEN_TOWER, "fullatt_block_indexes": [0], "window_size": 8}, more=PLACES),
    "qwen3_vl": Family("qwen3_vl", "Qwen3-VL 2B to 32B", {"rope_parameters": {**SECTIONS, "mrope_interleaved": True}}, vision=STACKED,
        more=PLACES),
    "qwen3_vl_moe": Family("qwen3_vl_moe", "Qwen3-VL 30B-A3B, 235B-A22B", {
        **LOCAL, "moe_intermediate_size": 24, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}}, vision=STACKED, more=PLACES),
    "qwen3_5": Family("qwen3_5", "Qwen3.5, 3.6 dense", {**LINEAR, "head_dim": 16, "rope_parameters": PARTIAL}, vision=QWEN_TOWER,
        more=PLACES, extra=MTP),
    "qwen3_5_moe": Family("qwen3_5_moe", "Qwen3.5, 3.6 MoE", {
        **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 24, "head_dim": 16, "rope_parameters": PARTIAL}, vision=QWEN_TOWER,
        more=PLACES, extra=MTP),
    "gemma3": Family("gemma3", "Gemma 3 4B to 27B", {**GEMMA, **WINDOW}, vision=TOWER, more={**PLACE, "mm_tokens_per_image": 4}),
    "gemma4": Family("gemma4", "Gemma 4 31B", {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
        vision=GEMMA4_TOWER),
    "gemma4, per layer": Family("gemma4", "Gemma 4 E2B, E4B", {**GEMMA4, **PER_LAYER}, vision=GEMMA4_TOWER),
    "gemma4, moe": Family("gemma4", "Gemma 4 26B-A4B", {
        **GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}, vision=GEMMA4_TOWER),
    "kimi_k25": Family("kimi_k25", "Kimi K2.5", {**LATENT, **GROUPED, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
        vision={**TOWER, "pos_emb_height": 4, "pos_emb_width": 4}, more=PLACES),
}
