"""DSpark's keys of a draft's config.json: ours stand in `dflash_config`, and an export repeats them at the top for servers.

vLLM        at the top alone: markov_rank, enable_confidence_head, confidence_head_with_markov, sample_from_anchor
SGLang      its parser reads either place, its head is built from the top, its mask token and layers from either
llama.cpp   at the top: sample_from_anchor, markov_head_type; nested: block_size, mask_token_id, target_layer_ids
"""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.errors import ContractError, UserError
from torchspec.methods.block import format
from torchspec.methods.dspark.config import DSparkConfig
from torchspec.methods.dspark.head import HEADS
from torchspec.methods.temperatures import read_temperatures

# key -> what its readers take a missing one for
DEFAULTS = {
    "sample_from_anchor": True, "markov_rank": None, "markov_head_type": "vanilla",
    "enable_confidence_head": False, "confidence_head_with_markov": False,
}  # fmt: skip
MARKOV, CONFIDENCE = ("markov_head.*",), ("confidence_head.*",)
MEANING = {
    **format.MEANING,
    "dflash_config.markov_rank": (*MARKOV, *CONFIDENCE),
    "dflash_config.markov_head_type": MARKOV,
    "dflash_config.enable_confidence_head": CONFIDENCE,
    "dflash_config.confidence_head_with_markov": CONFIDENCE,
}


def add_settings(config: Qwen3Config, options: DSparkConfig) -> None:
    config.dflash_config.update(
        sample_from_anchor=options.sample_from_anchor,
        markov_rank=options.markov_rank,
        markov_head_type=options.markov_head_type,
        enable_confidence_head=options.confidence_loss > 0,
        confidence_head_with_markov=options.confidence_head_with_markov,
    )


def repeated(values: dict) -> dict:
    return {key: values["dflash_config"][key] for key in (*DEFAULTS, "mask_token_id", "target_layer_ids")}


def read_settings(folder: Path, values: dict) -> dict:
    """DeepSpec writes the keys at the top, SpecForge inside, servers read them here or there."""
    nested = values.get("dflash_config") or {}
    for key in (*DEFAULTS, "mask_token_id", "target_layer_ids"):
        if key in values and key in nested and values[key] != nested[key]:
            raise UserError(
                f"the draft's config.json says {key}={values[key]} at the top and {nested[key]} in dflash_config; its readers would "
                "differ, so write the one that it was trained with"
            )
    said = {**values, **nested}
    return {**{key: said.get(key, default) for key, default in DEFAULTS.items()}, **read_temperatures(folder)}


def uncomputed(values: dict) -> dict[str, bool]:
    head = values["dflash_config"]
    rank, kind, projector = head["markov_rank"], head["markov_head_type"], head.get("projector_type")
    return {
        f"a Markov head of rank {rank}": not (isinstance(rank, int) and rank > 0),
        f"the Markov head {kind!r}": kind not in HEADS,
        f"the projector {projector!r}": projector not in (None, "dspark"),
        "a correction of some tokens alone (dspark_draft_topk)": bool(values.get("dspark_draft_topk")),
    }


def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    format.check_folder(folder, config, tensors)
    nested, shape = config["dflash_config"], tuple(tensors["markov_head.markov_w1.weight"].shape)
    apart = [key for key, value in repeated(config).items() if config.get(key) != value]
    if apart:
        raise ContractError(f"{folder}: {', '.join(apart)} must stand in dflash_config and, equal, at the top; export it again")
    if shape != (config["vocab_size"], nested["markov_rank"]):
        raise ContractError(f"{folder}: markov_w1 is {shape}, but config.json says {config['vocab_size']} x {nested['markov_rank']}")


def vllm_traps(config: PreTrainedConfig) -> list[str]:
    kind = config.dflash_config["markov_head_type"]
    return [] if kind == "vanilla" else [f"vLLM and llama.cpp have no {kind} Markov head"]


def sglang_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]:
    traps, rows = format.sglang_traps(config, target_type), config.to_dict().get("draft_vocab_size")
    return traps if rows in (None, config.vocab_size) else [*traps, "SGLang reads no draft vocabulary of a DSpark draft"]
