"""EAGLE-3 checkpoints as vLLM and SGLang serve them: what a config.json leaves out is what these servers assume."""

from pathlib import Path

from transformers import LlamaConfig, Qwen3Config

from torchspec.console import console
from torchspec.errors import ContractError
from torchspec.importers.folder import read_tensors
from torchspec.importers.own import Draft, named_as_ours, our_config, take_embedding, take_vocabulary
from torchspec.methods.eagle3.format import AUX, check_serves, default_layer_ids
from torchspec.target.frozen import FrozenTarget

DRAFT_TOKENS = 5  # where neither the config.json nor the user says how many
QWEN3 = "Eagle3Qwen3ForCausalLM"  # the one architecture whose layer norms each head


def import_eagle3(folder: Path, values: dict, target: FrozenTarget, draft_tokens: int | None) -> Draft:
    nested = dict(values.get("eagle_config") or {})
    layer_ids = captured_layers(values, nested, target.num_layers)
    norm_before_fc = bool(nested.get("norm_before_fc", values.get("norm_before_fc")))
    settings = {
        "num_target_layers": values.get("num_target_layers") or target.num_layers,
        "ttt_length": draft_tokens or trained_tokens(values.get("ttt_length")),
        "draft_vocab_size": None,
        "num_aux_hidden_states": len(layer_ids),
        "eagle_config": {**nested, AUX: layer_ids, "norm_before_fc": norm_before_fc},
        AUX: [z + 1 for z in layer_ids],
        "norm_before_fc": norm_before_fc,
        **{name: bool(values.get(name)) for name in ("norm_before_residual", "fc_norm", "norm_output")},
    }
    kind = Qwen3Config if values["architectures"][0] == QWEN3 else LlamaConfig
    config = our_config(kind, {"mlp_bias": False, **values, **settings})
    config.architectures = ["LlamaForCausalLMEagle3"]
    check_serves(config, target)
    tensors = named_as_ours(read_tensors(folder), {"layers.0.": "midlayer."})
    reads = take_embedding(tensors, target)
    config.draft_vocab_size = take_vocabulary(tensors, target, values.get("draft_vocab_size"))
    return Draft("eagle3", config, tensors, reads)


def captured_layers(values: dict, nested: dict, num_target_layers: int) -> list[int]:
    """z-ids. vLLM reads the top level, in layers that have run (z + 1); SGLang the nested list, in z; both have the same default."""
    for_vllm, for_sglang = ([a - 1 for a in values.get(AUX) or ()], list(nested.get(AUX) or ()))
    if for_vllm and for_sglang and for_vllm != for_sglang:
        raise ContractError(
            f"the draft's config.json makes vLLM capture the layers {for_vllm} ({AUX} at the top, less one) but SGLang {for_sglang} "
            f"({AUX} in eagle_config); keep the list that it was trained with"
        )
    return for_vllm or for_sglang or list(default_layer_ids(num_target_layers))


def trained_tokens(said: int | None) -> int:
    if said is None:
        console.print(f"the draft's config.json does not say how many tokens to draft: {DRAFT_TOKENS}; --draft-tokens K for another number")
    return said or DRAFT_TOKENS
