"""The Llama-style config.json of an EAGLE-3 draft, as it follows from the options and the target.

Two readers, two counts of layers: vLLM reads the ids at the top level as "layers that have run" (z + 1), SGLang those in
`eagle_config` as "layer whose output is taken" (z). Both are written, and must agree.
"""

from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from torchspec.errors import ContractError, UserError
from torchspec.methods.eagle3.config import Eagle3Config, EagleShape
from torchspec.methods.format import (
    check_captured,
    check_computed,
    check_keys,
    check_layer_ids,
    check_made_for,
    llamacpp_rope_traps,
    unusual,
)
from torchspec.methods.taken_over import taken_over
from torchspec.methods.vocabulary import check_vocabulary
from torchspec.target.frozen import FrozenTarget

AUX = "eagle_aux_hidden_state_layer_ids"
NORMS = ("norm_before_residual", "norm_before_fc", "fc_norm")
KEYS = ("num_target_layers", "ttt_length", "draft_vocab_size", "num_aux_hidden_states", "eagle_config", AUX, *NORMS, "norm_output")
# setting -> parameters that are others with it
MEANING = {f"eagle_config.{AUX}": ("fc.*", "fc_norm.*", "input_norm.*"), "head_dim": ("*.self_attn.*",)}

INPUTS = ("deepseek", "kimi", "glm4_moe_lite")  # targets whose ids SGLang takes for layers' inputs where the first is not 1


def default_layer_ids(num_target_layers: int) -> tuple[int, ...]:
    """What vLLM and SGLang capture for a draft that names no layers: the inputs of layers 2, N/2 and N-3."""
    return 1, num_target_layers // 2 - 1, num_target_layers - 4


def draft_config(options: Eagle3Config, target: FrozenTarget) -> LlamaConfig:
    """The draft's config.json (keys of docs/eagle3.md)."""
    values, layer_ids = eagle_settings(options, target)
    return LlamaConfig(
        **values,
        architectures=["LlamaForCausalLMEagle3"],
        num_hidden_layers=1,
        ttt_length=options.ttt_length,
        norm_output=options.norm_output,
        eagle_config={AUX: list(layer_ids), "use_aux_hidden_state": True, "norm_before_fc": options.norm_before_fc},
    )


def eagle_settings(options: EagleShape, target: FrozenTarget) -> tuple[dict, tuple[int, ...]]:
    """Keys of the config.json of an EAGLE-3 and a P-EAGLE draft, and the captured layers as z-ids."""
    model, (vocab_size, hidden_size) = target.config, target.embedding.shape
    if model.hidden_size != hidden_size:
        raise UserError(
            f"draft.method={options.method} needs a target whose layers are as wide as its embedding, but {target.folder} has "
            f"{model.hidden_size} and {hidden_size}; use draft.method=dflash"
        )
    if options.draft_vocab_size is not None and options.draft_vocab_size >= vocab_size:
        raise UserError(
            f"draft.draft_vocab_size={options.draft_vocab_size} is not below the target's {vocab_size} tokens; lower it or leave it out"
        )
    if options.num_attention_heads is not None and hidden_size % options.num_attention_heads:
        raise UserError(
            f"draft.num_attention_heads={options.num_attention_heads} does not divide the target's width {hidden_size}, as the Llama "
            "config of an EAGLE draft demands; set one that does, and draft.head_dim to what a head shall have"
        )
    layer_ids = options.target_layer_ids
    layer_ids = check_layer_ids(default_layer_ids(model.num_hidden_layers) if layer_ids is None else layer_ids, model.num_hidden_layers)
    return {
        **taken_over(options, model, hidden_size),
        "vocab_size": vocab_size,
        "draft_vocab_size": options.draft_vocab_size,
        "hidden_size": hidden_size,
        "num_aux_hidden_states": len(layer_ids),
        AUX: [z + 1 for z in layer_ids],
        **{name: vars(options)[name] for name in NORMS},
    }, layer_ids


def layer_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """z-ids, as SGLang counts."""
    return tuple(config.eagle_config[AUX])


def check_serves(config: PreTrainedConfig, target: FrozenTarget) -> None:
    """A draft folder fits the target that it is asked to draft for, and asks for nothing that is not computed here."""
    values = config.to_dict()
    check_keys(values, KEYS)
    several, bias = values["num_hidden_layers"] != 1, values["attention_bias"]
    check_computed({"several draft layers": several, "attention_bias": bias, **uncomputed(values)})
    check_made_for(config, target)
    check_layer_ids(layer_ids(config), target.num_layers)


def uncomputed(values: dict) -> dict[str, bool]:
    """What an EAGLE-3 or a P-EAGLE config.json may ask for and is not computed here -> does it."""
    return {
        "mlp_bias": values.get("mlp_bias"),
        "a hidden_act other than silu": values["hidden_act"] != "silu",
        "a sliding window": "sliding_attention" in (values.get("layer_types") or ()),
        **unusual(values),
        "no auxiliary features": not (values.get("eagle_config") or {}).get("use_aux_hidden_state", True),
    }


def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    """What vLLM and SGLang rely on and do not check themselves."""
    layer_ids = config["eagle_config"][AUX]
    check_captured(folder, layer_ids, config["num_target_layers"], config["hidden_size"], tensors["fc.weight"])
    if config[AUX] != [z + 1 for z in layer_ids] or config["num_aux_hidden_states"] != len(layer_ids):
        raise ContractError(
            f"{folder}: {AUX} is {config[AUX]} for vLLM and {layer_ids} for SGLang, with {config['num_aux_hidden_states']} layers counted; "
            "the first must be the second plus one, or the two capture different layers"
        )
    check_own_vocabulary(folder, config, tensors)


def check_own_vocabulary(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    size = config["draft_vocab_size"]
    if size is not None:
        check_vocabulary(tensors["d2t"], tensors["t2d"])
        if tensors["lm_head.weight"].shape[0] != size or len(tensors["d2t"]) != size:
            raise ContractError(f"{folder}: lm_head and d2t must have draft_vocab_size={size} rows; export it again")


def sglang_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]:
    """What SGLang would compute otherwise, in silence. target_type: of the target's config; none where it is not at hand."""
    layer_ids, traps = list(config.eagle_config[AUX]), []
    if len(layer_ids) == 1:
        traps.append("SGLang leaves out fc and norms of a draft that captures one layer")
    if config.norm_before_residual:
        traps.append("SGLang ignores norm_before_residual")
    if layer_ids[0] != 1 and (target_type is None or target_type.startswith(INPUTS)):
        whose = "a DeepSeek, Kimi or GLM-4-MoE-Lite target" if target_type is None else target_type
        traps.append(f"SGLang shifts the layer ids {layer_ids} of {whose} by one, since the first is not 1")
    return traps


def vllm_traps(_config: PreTrainedConfig) -> list[str]:
    """What vLLM would compute otherwise, in silence."""
    return []


def repeated(_values: dict) -> dict:
    """What readers look for in a second place: written by `draft_config` where it is needed."""
    return {}


def llamacpp_traps(config: PreTrainedConfig, _target_type: str | None) -> list[str]:
    """What llama.cpp would compute otherwise, or cannot load."""
    layer_ids = list(config.eagle_config[AUX])
    traps = llamacpp_rope_traps(config.rope_parameters, ("default", "linear", "yarn", "llama3"))
    if len(layer_ids) != 3:
        traps.append(f"llama.cpp takes three captured layers and this draft has {layer_ids}, train it with three draft.target_layer_ids")
    traps += [f"llama.cpp has no {name}, train it with draft.{name}=false" for name in ("fc_norm", "norm_output") if config.to_dict()[name]]
    return traps


def gguf_facts(config: PreTrainedConfig) -> dict[str, object]:
    """What llama.cpp reads of the converted draft; its layers are inputs, z + 1."""
    return {
        "general.architecture": "eagle3",
        "eagle3.block_count": config.num_hidden_layers,
        "eagle3.target_layers": [z + 1 for z in config.eagle_config[AUX]],
        "eagle3.norm_before_residual": config.norm_before_residual,
        "eagle3.norm_before_fc": config.norm_before_fc,
        "eagle3.rope.freq_base": config.rope_parameters["rope_theta"],
    }
