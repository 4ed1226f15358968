"""Models that also see images: their text model is the target."""

from tests.families.dense import GEMMA, GEMMA4, PER_LAYER, SCALED, WINDOW, YARN
from tests.families.family import Family
from tests.families.hybrid import LINEAR, MTP, SHARED_EXPERT
from tests.families.sparse import DEEPSEEK, LLAMA4, LOCAL, SHIFTED

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
LLAMA_TOWER = {**TOWER, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
PIXTRAL = {**TOWER, "model_type": "pixtral"}
KIMI_TOWER = {**TOWER, "pos_emb_height": 4, "pos_emb_width": 4}
QWEN_TOWER = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
QWEN2_TOWER = {**QWEN_TOWER, "fullatt_block_indexes": [0], "window_size": 8}
STACKED = {**QWEN_TOWER, "deepstack_visual_indexes": [0]}
GEMMA4_TOWER = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "position_embedding_size": 16,
}  # fmt: skip
PLACES = {"image_token_id": 284, "video_token_id": 285, "vision_start_token_id": 286, "vision_end_token_id": 287}
PLACE = {"image_token_index": 284}

# rotary positions of time, height and width; a text's three are equal
SECTIONS = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1]}
INTERLEAVED = {"rope_parameters": {**SECTIONS, "mrope_interleaved": True}}
PARTIAL = {"head_dim": 16, "rope_parameters": {**SECTIONS, "mrope_interleaved": True, "partial_rotary_factor": 0.5}}
MISTRAL, MINISTRAL = {"model_type": "mistral", "sliding_window": None}, {"model_type": "ministral3", "rope_parameters": YARN}
ROUTED = {**LOCAL, **INTERLEAVED, "moe_intermediate_size": 24}
WIDE = {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
GEMMA4_EXPERTS = {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}


def sees(model_type: str, examples: str, values: dict, vision: dict, places: dict, **more) -> Family:
    return Family(model_type, examples, values, vision=vision, more=places, **more)


KIMI = "KimiK25ForConditionalGeneration"

IMAGES = {
    "llama4": sees("llama4", "Llama 4 Scout, Maverick", LLAMA4, LLAMA_TOWER, PLACE, together=False),
    "mistral3": sees("mistral3", "Mistral Small 3.1, 3.2", MISTRAL, PIXTRAL, PLACE),
    "mistral3 of ministral3": sees("mistral3", "Ministral 3", MINISTRAL, PIXTRAL, PLACE),
    "qwen2_5_vl": sees("qwen2_5_vl", "Qwen2.5-VL", {"rope_parameters": SECTIONS}, QWEN2_TOWER, PLACES),
    "qwen3_vl": sees("qwen3_vl", "Qwen3-VL 2B to 32B", INTERLEAVED, STACKED, PLACES),
    "qwen3_vl_moe": sees("qwen3_vl_moe", "Qwen3-VL 30B-A3B, 235B-A22B", ROUTED, STACKED, PLACES),
    "qwen3_5": sees("qwen3_5", "Qwen3.5, 3.6 dense", {**LINEAR, **PARTIAL}, QWEN_TOWER, PLACES, extra=MTP, together=False),
    "qwen3_5_moe": sees(
        "qwen3_5_moe", "Qwen3.5, 3.6 MoE", {**LINEAR, **SHARED_EXPERT, **PARTIAL}, QWEN_TOWER, PLACES, extra=MTP, together=False
    ),
    "gemma3": sees("gemma3", "Gemma 3 4B to 27B", {**GEMMA, **WINDOW}, TOWER, {**PLACE, "mm_tokens_per_image": 4}, together=False),
    "gemma4": sees("gemma4", "Gemma 4 31B", WIDE, GEMMA4_TOWER, {}, together=False, notes=(SCALED,)),
    "gemma4, per layer": sees("gemma4", "Gemma 4 E2B, E4B", {**GEMMA4, **PER_LAYER}, GEMMA4_TOWER, {}, together=False, notes=(SCALED,)),
    "gemma4, moe": sees("gemma4", "Gemma 4 26B-A4B", GEMMA4_EXPERTS, GEMMA4_TOWER, {}, together=False, notes=(SCALED,)),
    "kimi_k25": sees("kimi_k25", "Kimi K2.5", DEEPSEEK, KIMI_TOWER, PLACES, published_as=KIMI, notes=(SHIFTED,)),
}
