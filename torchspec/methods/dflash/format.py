"""The Qwen3-style config.json of a draft in the z-lab format, as it follows from the options and the target."""

from transformers import PreTrainedConfig, Qwen3Config

from torchspec.errors import ContractError, UserError
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.target import FrozenTarget


def default_layer_ids(num_target_layers: int, count: int) -> tuple[int, ...]:
    """Evenly spread z-ids from 1 to N-3, rounded half to even (the z-lab formula)."""
    if count == 1:
        return (num_target_layers // 2,)
    return tuple(round(1 + i * (num_target_layers - 4) / (count - 1)) for i in range(count))


def check_layer_ids(layer_ids: tuple[int, ...], num_target_layers: int) -> tuple[int, ...]:
    """Strictly ascending and at most N-2: engines sort the ids, and several cannot capture the last layer."""
    ascending = all(a < b for a, b in zip(layer_ids, layer_ids[1:], strict=False))
    if not layer_ids or not ascending or layer_ids[0] < 0 or layer_ids[-1] > num_target_layers - 2:
        raise UserError(
            f"draft.target_layer_ids={list(layer_ids)}: the ids must ascend strictly and lie in 0..{num_target_layers - 2}, "
            f"since the target has {num_target_layers} layers and servers cannot capture the last one"
        )
    return layer_ids


def draft_config(options: DFlashConfig, target: PreTrainedConfig, embedding_shape: tuple[int, int], mask_token_id: int) -> Qwen3Config:
    """The draft's config.json in the z-lab format (keys of docs/dflash.md); `num_target_layers` counts all layers of the target."""
    vocab_size, hidden_size = embedding_shape
    layer_ids = options.target_layer_ids
    if layer_ids is None:
        layer_ids = default_layer_ids(target.num_hidden_layers, options.num_layers)
    check_layer_ids(layer_ids, target.num_hidden_layers)
    if not 0 <= mask_token_id < vocab_size:
        raise UserError(
            f"draft.mask_token_id={mask_token_id} lies outside the target's vocabulary 0..{vocab_size - 1}; leave it out to have one chosen"
        )
    same_width = {} if target.hidden_size == hidden_size else {"target_hidden_size": target.hidden_size}
    return Qwen3Config(
        architectures=["DFlashDraftModel"],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=_head_dim(target),
        hidden_act="silu",
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=_rope(target),
        layer_types=["full_attention"] * options.num_layers,
        max_window_layers=options.num_layers,
        tie_word_embeddings=False,
        use_sliding_window=False,
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
        dtype="bfloat16",
        block_size=options.block_size,
        num_target_layers=target.num_hidden_layers,
        dflash_config={"block_size": options.block_size, "mask_token_id": mask_token_id, "target_layer_ids": list(layer_ids)},
        **same_width,
    )


def check_serves(config: PreTrainedConfig, target: FrozenTarget) -> None:
    """A draft folder fits the target that it is asked to draft for, and asks for nothing that is not computed here."""
    _check_computed(config.to_dict())
    vocab_size, hidden_size = target.embedding.shape
    asked = (config.vocab_size, config.hidden_size, config.num_target_layers)
    if asked != (vocab_size, hidden_size, target.num_layers):
        raise ContractError(
            f"the draft was made for a target with vocabulary {asked[0]}, width {asked[1]} and {asked[2]} layers, but {target.folder} has "
            f"{vocab_size}, {hidden_size} and {target.num_layers}; give the target that it was trained for"
        )
    check_layer_ids(tuple(config.dflash_config["target_layer_ids"]), target.num_layers)


def _check_computed(values: dict) -> None:
    """Servers obey these keys; a tau measured without them would not be theirs."""
    missing = [key for key in ("num_target_layers", "block_size", "dflash_config") if key not in values]
    if missing:
        raise UserError(f"the draft's config.json lacks {', '.join(missing)}; export it again, or add what its author trained it with")
    sliding = "sliding_attention" in values["layer_types"] or values["use_sliding_window"]
    causal = values.get("is_causal") or values["dflash_config"].get("causal")
    asked = {"sliding-window layers": sliding, "causal blocks": causal, "a hidden_act other than silu": values["hidden_act"] != "silu"}
    if any(asked.values()):
        what = ", ".join(name for name, wrong in asked.items() if wrong)
        raise UserError(f"the draft's config.json asks for {what}, which is not computed here; its tau would not be the server's")


def _head_dim(target: PreTrainedConfig) -> int:
    explicit = target.to_dict().get("head_dim")
    return explicit or target.hidden_size // target.num_attention_heads


def _rope(target: PreTrainedConfig) -> dict:
    """The target's rotary settings, less what drafts do not do: partial rotation and multimodal sections."""
    rope = dict(target.rope_parameters)
    for key in ("partial_rotary_factor", "mrope_section", "mrope_interleaved"):
        rope.pop(key, None)
    if rope.get("rope_type") in ("mrope", None):
        rope["rope_type"] = "default"
    if "rope_theta" not in rope:
        raise UserError(
            f"the target's rope_parameters {rope} differ by layer type; the draft needs one set, and this target is not supported yet"
        )
    return rope
