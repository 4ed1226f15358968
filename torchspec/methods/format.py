"""What must hold between a draft's config.json and its target, whatever the method."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from torchspec.errors import ContractError, UserError
from torchspec.target.frozen import FrozenTarget


def check_layer_ids(layer_ids: tuple[int, ...], num_target_layers: int) -> tuple[int, ...]:
    """Strictly ascending and at most N-2: engines sort the ids, and several cannot capture the last layer."""
    ascending = all(a < b for a, b in zip(layer_ids, layer_ids[1:], strict=False))
    if not layer_ids or not ascending or layer_ids[0] < 0 or layer_ids[-1] > num_target_layers - 2:
        raise UserError(
            f"draft.target_layer_ids={list(layer_ids)}: the ids must ascend strictly and lie in 0..{num_target_layers - 2}, "
            f"since the target has {num_target_layers} layers and servers cannot capture the last one"
        )
    return layer_ids


def check_made_for(config: PreTrainedConfig, target: FrozenTarget) -> None:
    """A draft's vocabulary, width and count of target layers are those of the target that it is asked to draft for."""
    vocab_size, hidden_size = target.embedding.shape
    asked = (config.vocab_size, config.hidden_size, config.num_target_layers)
    if asked != (vocab_size, hidden_size, target.num_layers):
        raise ContractError(
            f"the draft was made for a target with vocabulary {asked[0]}, width {asked[1]} and {asked[2]} layers, but {target.folder} has "
            f"{vocab_size}, {hidden_size} and {target.num_layers}; give the target that it was trained for"
        )


def check_keys(values: dict, needed: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in values]
    if missing:
        raise UserError(f"the draft's config.json lacks {', '.join(missing)}; export it again, or add what its author trained it with")


def check_computed(asked: dict[str, bool]) -> None:
    """asked: what a config.json may demand of a server and is not computed here -> does it."""
    if any(asked.values()):
        what = ", ".join(name for name, wrong in asked.items() if wrong)
        raise UserError(f"the draft's config.json asks for {what}, which is not computed here; its tau would not be the server's")


def unusual(values: dict) -> dict[str, bool]:
    """For check_computed: what servers do with any draft whose config.json says so."""
    rope = values["rope_parameters"]
    return {
        "attention biases or scales of its own": any(values.get(key) for key in ("attention_sink_bias", "attention_value_scale")),
        "partial or interleaved rotation": rope.get("partial_rotary_factor", 1.0) != 1.0
        or not (values.get("is_neox_style", True) and values.get("rope_is_neox_style", True)),
        "rotary settings by layer type": "rope_theta" not in rope,
        "scaled or capped logits": values.get("logit_scale", 1.0) != 1.0 or bool(values.get("final_logit_softcapping")),
        "quantised weights": bool(values.get("quantization_config")),
    }


def llamacpp_rope_traps(rope: dict, written: tuple[str, ...]) -> list[str]:
    """What llama.cpp's converter leaves out of a draft's rotary settings, and says nothing. written: the scalings that it writes."""
    if rope["rope_type"] not in written:
        return [f"llama.cpp's converter leaves {rope['rope_type']} scaling of RoPE out, train it with draft.rope=plain"]
    if rope["rope_type"] == "yarn" and (rope.get("truncate") is False or rope.get("mscale") or rope.get("mscale_all_dim")):
        return ["llama.cpp has no truncate and no mscale of YaRN, train it with draft.rope=plain"]
    return []


def check_captured(folder: Path, layer_ids: list[int], num_target_layers: int, width: int, fc: Tensor) -> None:
    """The z-ids of a written folder, and the columns of its fc [H, K*width]."""
    if sorted(set(layer_ids)) != layer_ids or layer_ids[-1] > num_target_layers - 2:
        raise ContractError(
            f"{folder}: target_layer_ids {layer_ids} must ascend and end below layer {num_target_layers - 1}; servers sort them, "
            "so fc would read permuted columns"
        )
    if fc.shape[1] != len(layer_ids) * width:
        raise ContractError(f"{folder}: fc takes {fc.shape[1]} features but {len(layer_ids)} layers of width {width} are captured")
