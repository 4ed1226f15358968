"""The config.json of a P-EAGLE draft: Llama's keys, and those by which vLLM finds that it drafts all tokens at once.

vLLM knows such a draft by the name PeagleLlamaForCausalLM, and lets nobody but the format of speculators say it: of a plain folder that
is served with method eagle3 it asks for a name that begins or ends with Eagle3. So the config says that it is of speculators' type
`peagle`, and the export repeats it as the `transformer_layer_config` that vLLM reads such a draft from (export/hf.py).
"""

from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from torchspec.errors import ContractError, UserError
from torchspec.methods.eagle3.format import AUX, NORMS, check_own_vocabulary, eagle_settings, uncomputed
from torchspec.methods.format import check_captured, check_computed, check_keys, check_layer_ids, check_made_for
from torchspec.methods.mask_token import check_mask_token
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.target.frozen import FrozenTarget

ARCHITECTURE = "PeagleLlamaForCausalLM"
KEYS = ("num_target_layers", "num_depths", "mask_token_id", "draft_vocab_size", "num_aux_hidden_states", AUX, *NORMS)
# setting -> parameters that are others with it
MEANING = {AUX: ("fc.*", "fc_norm.*", "input_norm.*", "mask_hidden"), "head_dim": ("*.self_attn.*",)}


def draft_config(options: PeagleConfig, target: FrozenTarget, mask_token_id: int) -> LlamaConfig:
    """The draft's config.json (keys of docs/peagle.md)."""
    values, _ = eagle_settings(options, target)
    check_mask_token(mask_token_id, values["vocab_size"])
    return LlamaConfig(
        **values,
        architectures=[ARCHITECTURE],
        num_hidden_layers=options.num_layers,
        num_depths=options.num_depths,
        mask_token_id=mask_token_id,
        **speculators_keys(options.num_depths),
    )


def speculators_keys(num_depths: int) -> dict:
    """By which a folder is one of speculators. The target is named by whoever serves it: its path is of this machine."""
    proposal = {"proposal_type": "greedy", "speculative_tokens": num_depths, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "speculators_model_type": "peagle",
        "speculators_config": {
            "algorithm": "peagle",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": None, "architectures": []},
        },
    }


def layer_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """z-ids; the config counts layers that have run, z + 1, as vLLM does."""
    return tuple(a - 1 for a in vars(config)[AUX])


def check_serves(config: PreTrainedConfig, target: FrozenTarget) -> None:
    """A draft folder fits the target that it is asked to draft for, and asks for nothing that is not computed here."""
    values = config.to_dict()
    check_keys(values, KEYS)
    check_computed(uncomputed(values))
    check_made_for(config, target)
    check_layer_ids(layer_ids(config), target.num_layers)
    if not 0 <= config.mask_token_id < config.vocab_size:
        raise UserError(
            f"the draft's config.json says mask_token_id={config.mask_token_id}, which is no token of the target's {config.vocab_size}; "
            "write the one that it was trained with"
        )


def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    """What vLLM relies on and does not check itself: it reads the draft from `transformer_layer_config`, the rest from the top."""
    captured = [a - 1 for a in config[AUX]]
    check_captured(folder, captured, config["num_target_layers"], config["hidden_size"], tensors["fc.weight"])
    check_own_vocabulary(folder, config, tensors)
    inner = config.get("transformer_layer_config", {})
    other = [key for key in (*KEYS, "num_hidden_layers", "rope_parameters") if inner.get(key, config) != config[key]]
    if other or config["num_aux_hidden_states"] != len(captured):
        raise ContractError(
            f"{folder}: config.json and its transformer_layer_config differ in {other}, with {config['num_aux_hidden_states']} layers "
            f"counted for {len(captured)}; vLLM reads both, so export it again"
        )
    proposed = config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
    if proposed != config["num_depths"]:
        raise ContractError(f"{folder}: vLLM would draft {proposed} tokens of {config['num_depths']} trained; export it again")
    if tensors["mask_hidden"].numel() != tensors["fc.weight"].shape[1]:
        raise ContractError(f"{folder}: mask_hidden must have the {tensors['fc.weight'].shape[1]} features that fc takes; export it again")


def sglang_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
    return ["SGLang has no P-EAGLE"]


def llamacpp_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
    return ["llama.cpp has no P-EAGLE"]


def gguf_facts(_config: PreTrainedConfig) -> dict[str, object]:
    """None: it is not converted."""
    return {}
