"""What a draft takes over from the target's config, and what it has instead where the target's makes no sense for a draft.

heads, head size    the target's. With MLA every head has keys of its own (128 of them in DeepSeek-V3) and sizes that no other attention
                    knows: heads of 128 instead, as many as fill the draft's width, at most 8 of them with keys. The same where the
                    config does not say, where its heads do not divide the width (Llama's config demands it), or a head has no pairs.
MLP                 the target's, unless it is less than twice the draft's width: then it is one expert's, since dense models have 2 to
                    6 times. Instead, and where it differs by layer or is missing: 3 times the width, in steps of 128, as Qwen3-8B
                    has; the sum of a token's experts would be anything from 2 (Qwen3.5-MoE) to 7 times (Mixtral).
norm epsilon        the target's, also where its norms are LayerNorms; else 1e-6.
RoPE                the target's set, of its full-attention layers where sets differ by layer type. Partial rotation and multimodal
                    sections are left out: drafts turn whole heads by one position. Theta alone is taken where the scaling is of a
                    kind, or of factors for a head size, that drafts do not have; theta 10000 where the target turns nothing.
positions           the target's longest text; where it names none, 131,072: servers size a table by it, and read beyond the end of
                    one that is too short.
"""

from transformers import PreTrainedConfig

from torchspec.errors import UserError
from torchspec.methods.config import FULL, DraftShape
from torchspec.target.language_config import LENGTHS

HEAD_DIM, KEY_VALUE_HEADS, MLP_RATIO, STEP = 128, 8, 3, 128
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
EPSILON, THETA, POSITIONS = 1e-6, 10000.0, 131_072
SCALINGS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
NOT_OF_DRAFTS = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")


def taken_over(shape: DraftShape, target: PreTrainedConfig, width: int) -> dict:
    """Keys of a draft's config.json that are the target's, and those that every draft has. width: of the draft's states."""
    values = named(target)
    heads = _heads(shape, values, width)
    return {
        **heads,
        "intermediate_size": shape.intermediate_size or _mlp(values, width),
        "hidden_act": "silu",
        "max_position_embeddings": next((values[key] for key in LENGTHS if _count(values, key)), POSITIONS),
        "rms_norm_eps": next((values[key] for key in EPSILONS if values.get(key)), EPSILON),
        "rope_parameters": _rope(shape.rope, values, heads["head_dim"]),
        "tie_word_embeddings": False,
        "bos_token_id": values.get("bos_token_id"),
        "eos_token_id": values.get("eos_token_id"),
        "dtype": "bfloat16",
        "num_target_layers": target.num_hidden_layers,
    }


def named(target: PreTrainedConfig) -> dict:
    """A config's settings, also under the common names of those that the model calls otherwise (n_head)."""
    values = target.to_dict()
    return values | {ours: values[theirs] for ours, theirs in target.attribute_map.items() if theirs in values}


def _count(values: dict, key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _heads(shape: DraftShape, values: dict, width: int) -> dict[str, int]:
    default = _of_target(values, width) or _standard(width)
    heads, size = shape.num_attention_heads or default["num_attention_heads"], shape.head_dim or default["head_dim"]
    keys = shape.num_key_value_heads or _divisor(heads, default["num_key_value_heads"])
    if heads % keys:
        raise UserError(
            f"draft.num_key_value_heads={keys} does not divide the {heads} attention heads that follow from the target; "
            "set draft.num_attention_heads to a multiple of it"
        )
    return {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": size}


def _of_target(values: dict, width: int) -> dict[str, int] | None:
    heads, keys, size = (_count(values, key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if _count(values, "kv_lora_rank") or not heads or width % heads:
        return None
    size, keys = size or values["hidden_size"] // heads, keys or _divisor(heads, KEY_VALUE_HEADS)
    usable = size > 0 and size % 2 == 0 and heads % keys == 0
    return {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": size} if usable else None


def _standard(width: int) -> dict[str, int]:
    heads = _divisor(width, max(1, width // HEAD_DIM))
    size = HEAD_DIM if width >= HEAD_DIM else width - width % 2
    return {"num_attention_heads": heads, "num_key_value_heads": _divisor(heads, KEY_VALUE_HEADS), "head_dim": size}


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _mlp(values: dict, width: int) -> int:
    size = _count(values, "intermediate_size")
    return size if size and size >= 2 * width else max(1, round(MLP_RATIO * width / STEP)) * STEP


def _rope(kind: str, values: dict, head_dim: int) -> dict:
    settings = values.get("rope_parameters") or {}
    settings = settings.get(FULL) or settings
    scaling = settings.get("rope_type", settings.get("type"))
    theta = settings.get("rope_theta") or THETA
    fits = scaling != "longrope" or len(settings["short_factor"]) == head_dim // 2
    if kind == "plain" or scaling not in SCALINGS or not fits:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_theta": theta} | {key: value for key, value in settings.items() if key not in NOT_OF_DRAFTS}
