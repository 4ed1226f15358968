"""The Qwen3-style config.json of a draft in the z-lab format, as it follows from the options and the target."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.errors import UserError
from torchspec.methods.block.config import BlockConfig
from torchspec.methods.config import FULL, SLIDING
from torchspec.methods.format import (
    check_captured,
    check_computed,
    check_keys,
    check_layer_ids,
    check_made_for,
    llamacpp_rope_traps,
    unusual,
)
from torchspec.methods.mask_token import check_mask_token
from torchspec.methods.taken_over import taken_over
from torchspec.nn.attention import Sight
from torchspec.target.frozen import FrozenTarget

MEANING = {"dflash_config.target_layer_ids": ("fc.*",), "head_dim": ("*.self_attn.*",)}  # setting -> parameters that are others with it


def default_layer_ids(num_target_layers: int, count: int) -> tuple[int, ...]:
    """Evenly spread z-ids from 1 to N-3, rounded half to even (the z-lab formula)."""
    if count == 1:
        return (num_target_layers // 2,)
    return tuple(round(1 + i * (num_target_layers - 4) / (count - 1)) for i in range(count))


def draft_config(options: BlockConfig, target: PreTrainedConfig, embedding_shape: tuple[int, int], mask_token_id: int) -> Qwen3Config:
    """The draft's config.json in the z-lab format (keys of docs/dflash.md); `num_target_layers` counts all layers of the target.

    It is DFlash's; methods with a head add theirs to it.
    """
    vocab_size, hidden_size = embedding_shape
    layer_ids = options.target_layer_ids
    if layer_ids is None:
        layer_ids = default_layer_ids(target.num_hidden_layers, options.num_layers)
    check_layer_ids(layer_ids, target.num_hidden_layers)
    check_mask_token(mask_token_id, vocab_size)
    same_width = {} if target.hidden_size == hidden_size else {"target_hidden_size": target.hidden_size}
    return Qwen3Config(
        **taken_over(options, target, hidden_size),
        **layer_settings(options),
        architectures=["DFlashDraftModel"],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=options.num_layers,
        block_size=options.block_size,
        dflash_config={"block_size": options.block_size, "mask_token_id": mask_token_id, "target_layer_ids": list(layer_ids)},
        **same_width,
    )


def layer_settings(options: BlockConfig) -> dict:
    """What each layer sees, in all keys that readers look for. Sliding layers are causal, as vLLM, SGLang and `dflash` take them to be;
    llama.cpp knows one direction for all layers, which can be written down where all of them slide.
    """
    layer_types = list(options.layer_types or [FULL if options.sliding_window is None else SLIDING] * options.num_layers)
    slides = SLIDING in layer_types
    return {
        "layer_types": layer_types,
        "use_sliding_window": slides,
        "sliding_window": options.sliding_window,
        "max_window_layers": layer_types.index(SLIDING) if slides else options.num_layers,
        **({} if FULL in layer_types else {"is_causal": True}),
    }


def proposing_rows(nested: dict) -> slice:
    """The rows of a block that propose, by its `dflash_config`: all but the anchor's, or all where the method samples from the anchor."""
    return slice(0 if nested.get("sample_from_anchor", False) else 1, None)


def sights(config: PreTrainedConfig) -> tuple[Sight, ...]:
    """What the rows of each layer see, in vLLM's order: `is_causal`, else `dflash_config.causal`, else sliding layers alone are causal."""
    values = config.to_dict()
    said = next((x for x in (values.get("is_causal"), values["dflash_config"].get("causal")) if x is not None), None)
    slides = [kind == SLIDING for kind in values["layer_types"]]
    return tuple(Sight(values["sliding_window"] if far else None, far if said is None else bool(said)) for far in slides)


def check_windows(values: dict) -> None:
    """Every layer is of a kind that is computed here, and a window is there exactly where a layer slides."""
    layer_types, window = values["layer_types"], values["sliding_window"]
    if (
        not set(layer_types) <= {FULL, SLIDING}
        or SLIDING in layer_types
        and not (values["use_sliding_window"] and isinstance(window, int) and window > 0)
    ):
        raise UserError(
            f"the draft's config.json says layer_types={layer_types}, sliding_window={window}, use_sliding_window="
            f"{values['use_sliding_window']}; write one of {FULL} and {SLIDING} for each layer, and for the latter a window with "
            "use_sliding_window true, without which readers drop it"
        )


def check_serves(config: PreTrainedConfig, target: FrozenTarget, asked: dict[str, bool]) -> None:
    """A draft folder fits the target that it is asked to draft for, and asks for nothing that is not computed here.

    Servers obey these keys; a tau measured without them would not be theirs. asked: of the method's head, for check_computed; it has
    the last word on what it computes.
    """
    values = config.to_dict()
    check_keys(values, ("num_target_layers", "block_size", "dflash_config"))
    check_computed(
        {"a hidden_act other than silu": values["hidden_act"] != "silu", **unusual({**values, **values["dflash_config"]}), **asked}
    )
    check_windows(values)
    check_made_for(config, target)
    check_layer_ids(tuple(config.dflash_config["target_layer_ids"]), target.num_layers)


def uncomputed(values: dict, *projectors: str) -> dict[str, bool]:
    """What the config.json may ask of a head and is not computed here -> does it. projectors: names of the head, beside DFlash's."""
    nested = values["dflash_config"]
    projector = nested.get("projector_type")
    return {
        "a proposal from the anchor's own slot": bool(nested.get("sample_from_anchor")),
        f"the projector {projector!r}": projector not in (None, "dflash", *projectors),
    }


def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    layer_ids, width = config["dflash_config"]["target_layer_ids"], config.get("target_hidden_size", config["hidden_size"])
    check_captured(folder, layer_ids, config["num_target_layers"], width, tensors["fc.weight"])
    check_windows(config)


def vllm_traps(_config: PreTrainedConfig) -> list[str]:
    """What vLLM would compute otherwise, or cannot load."""
    return []


def sglang_traps(config: PreTrainedConfig, _target_type: str | None) -> list[str]:
    """What SGLang would compute otherwise, or cannot load."""
    values, traps = config.to_dict(), []
    if values.get("target_hidden_size") not in (None, config.hidden_size):
        traps.append("SGLang reads no target_hidden_size")
    said, sliding = values["dflash_config"].get("causal"), [kind == SLIDING for kind in values["layer_types"]]
    if values.get("is_causal") is None and said is not None and any(far != said for far in sliding):
        traps.append(f"SGLang ignores dflash_config.causal={said}; write is_causal")
    return traps


def llamacpp_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]:
    """What llama.cpp would compute otherwise. target_type: of the target's config; none where it is not at hand."""
    values = config.to_dict()
    traps = llamacpp_rope_traps(values["rope_parameters"], ("default", "linear", "yarn"))
    if values.get("target_hidden_size") not in (None, config.hidden_size):
        traps.append("llama.cpp reads no target_hidden_size")
    said = values.get("is_causal") is not None or values["dflash_config"].get("causal") is not None
    if SLIDING in values["layer_types"] and not said:
        traps.append("llama.cpp lets all layers look both ways where some slide, train it with draft.layer_types of one kind")
    if target_type is not None and target_type.startswith("gemma"):
        traps.append("llama.cpp multiplies a Gemma target's embeddings for the draft, which reads them as stored")
    return traps


def gguf_facts(config: PreTrainedConfig) -> dict[str, object]:
    """What llama.cpp reads of the converted draft; its layers are inputs, z + 1."""
    nested = config.dflash_config
    return {
        "general.architecture": "dflash",
        "dflash.block_count": config.num_hidden_layers,
        "dflash.block_size": config.block_size,
        "dflash.target_layers": [z + 1 for z in nested["target_layer_ids"]],
        "dflash.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.mask_token_id": nested["mask_token_id"],
    }
