"""The config.json of vllm-project/speculators in the words of the formats that it stands for; its tensor names are theirs."""

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.methods.config import FULL
from torchspec.methods.dflash2 import format as dflash2
from torchspec.methods.dspark import format as dspark
from torchspec.methods.eagle3.format import AUX, NORMS

TYPE = "speculators_model_type"


def is_speculators(values: dict) -> bool:
    return TYPE in values


def unwrapped(values: dict) -> dict:
    """-> a config.json of the z-lab format, or of an EAGLE-3 or P-EAGLE checkpoint. Layer ids here are layers that have run, z + 1."""
    kind = values[TYPE]
    if kind not in KINDS:
        raise UserError(f"the draft is a speculators folder of {kind!r}; supported are those of {', '.join(KINDS)}")
    layers = values.get("transformer_layer_config") or {}
    taken = {key: values[key] for key in ("draft_vocab_size", "target_hidden_size") if values.get(key) is not None}
    return {**layers, **taken, **KINDS[kind](values, layers)}


def _dflash(values: dict, layers: dict) -> dict:
    block_size, layer_ids, mask_token_id = (values.get(key) for key in ("block_size", "aux_hidden_state_layer_ids", "mask_token_id"))
    if block_size is None or not layer_ids:
        raise UserError("the draft's config.json lacks block_size or aux_hidden_state_layer_ids; write what it was trained with")
    layer_types, causal = layers.get("layer_types") or [FULL], not values.get("sliding_window_non_causal", True)
    if causal and FULL in layer_types:
        console.print(
            "the draft says sliding_window_non_causal=false, which makes vLLM serve its full-attention layers causally; they were trained "
            "on whole blocks and are computed so here, so write true to have them served so"
        )
    nested = {
        "mask_token_id": mask_token_id,
        "target_layer_ids": [a - 1 for a in layer_ids],
        "sample_from_anchor": values.get("sample_from_anchor", False),
        **({} if causal else {"causal": False}),  # as trained: whole blocks in full layers, sliding ones causal where it says so
    }
    return {"architectures": ["DFlashDraftModel"], "block_size": block_size, "dflash_config": nested}


def _dflash2(values: dict, layers: dict) -> dict:
    settings = _dflash(values, layers)
    head = {key: values[key] for key in dflash2.KEYS if key in values}
    return {**settings, "architectures": ["DFlash2DraftModel"], "dflash_config": {**settings["dflash_config"], **head}}


def _dspark(values: dict, layers: dict) -> dict:
    """sample_from_anchor: readers take a missing key for false in this format, and for true in all others."""
    settings = _dflash(values, layers)
    head = {key: values[key] for key in dspark.DEFAULTS if key in values}
    if head.get("markov_head_type") == "rnn" and not settings["dflash_config"]["sample_from_anchor"]:
        raise UserError(
            "the draft's recurrent Markov head was trained to remember the anchor's row, which no server shows it where "
            "sample_from_anchor is false; its tau would not be the server's"
        )
    return {**settings, "architectures": ["Qwen3DSparkModel"], "dflash_config": {**settings["dflash_config"], **head}}


def _xpress(values: dict, layers: dict) -> dict:
    """Its own inference refines all tokens; the width of the MLP is said in units of the rank."""
    settings, rank = _dflash(values, layers), values.get("xpress_rank", 256)
    head = {
        "xpress_rank": rank,
        "xpress_mlp_hidden": rank * values.get("xpress_mlp_ratio", 2),
        "xpress_num_passes": values.get("num_jacobi_passes", 6),
        "xpress_topc": 0,
    }
    return {**settings, "architectures": ["Qwen3XPressModel"], "dflash_config": {**settings["dflash_config"], **head}}


def _eagle3(values: dict, layers: dict) -> dict:
    """norm_before_residual: vLLM takes a missing key for true in this format, and for false in all others."""
    flags = {name: values.get(name, False) for name in ("norm_before_fc", "fc_norm", "norm_output")}
    return {
        "architectures": ["Eagle3Qwen3ForCausalLM" if layers.get("model_type") == "qwen3" else "LlamaForCausalLMEagle3"],
        "norm_before_residual": values.get("norm_before_residual", True),
        "ttt_length": _proposed(values),
        AUX: values.get(AUX),
        **flags,
    }


def _peagle(values: dict, layers: dict) -> dict:
    """norm_before_residual: false where it is missing, unlike EAGLE-3's. norm_output has nothing to go on with."""
    return {
        "architectures": ["PeagleQwen3ForCausalLM" if layers.get("model_type") == "qwen3" else "PeagleLlamaForCausalLM"],
        "num_depths": _proposed(values),
        "mask_token_id": values.get("mask_token_id"),
        AUX: values.get(AUX),
        **{name: values.get(name, False) for name in NORMS},
    }


def _proposed(values: dict) -> int | None:
    """Draft tokens of the first proposal method, which is the one that vLLM serves with."""
    methods = (values.get("speculators_config") or {}).get("proposal_methods") or [{}]
    return methods[0].get("speculative_tokens")


KINDS = {"dflash": _dflash, "dflash2": _dflash2, "dspark": _dspark, "eagle3": _eagle3, "peagle": _peagle, "xpress": _xpress}
