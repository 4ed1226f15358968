"""DFlash2's keys of a draft's config.json, all inside of `dflash_config`: that is where vLLM, SGLang, llama.cpp and `dflash` look."""

from transformers import PreTrainedConfig, Qwen3Config

from torchspec.errors import UserError
from torchspec.methods.block import format
from torchspec.methods.dflash2.config import DFlash2Config
from torchspec.methods.format import check_keys
from torchspec.nn.logits import LogitLaw

KEYS = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
CONVOLUTIONS, SELECTOR = ("*_conv.*",), ("candidate_selector.*",)
MEANING = {**format.MEANING, "dflash_config.conv_group_size": ("*_conv.kernel_projection.*",)}


def add_settings(config: Qwen3Config, options: DFlash2Config) -> None:
    config.dflash_config.update({key: getattr(options, key) for key in KEYS})
    check_sizes(config)


def check_sizes(config: PreTrainedConfig) -> None:
    head = config.dflash_config
    check_keys(head, KEYS)
    group, best = head["conv_group_size"], head["selector_top_k"]
    if config.hidden_size % group:
        raise UserError(f"conv_group_size={group} does not divide the draft's width of {config.hidden_size}; choose one that does")
    if not 2 <= best <= config.vocab_size:
        raise UserError(f"selector_top_k={best} is no number of candidates: choose one from 2 to the {config.vocab_size} tokens there are")


def logit_law(config: PreTrainedConfig) -> LogitLaw:
    """What a draft of others does to its own logits, first scale and then cap, before the selector adds to them. Ours does nothing."""
    head = config.dflash_config
    return LogitLaw(float(head.get("output_multiplier", 1.0)), head.get("final_logit_softcapping") or None)


def uncomputed(values: dict) -> dict[str, bool]:
    """Scaled and capped logits are computed, where they are DFlash2's own keys."""
    head, rows = values["dflash_config"], values.get("draft_vocab_size")
    multiplier, embeddings = head.get("output_multiplier", 1.0), head.get("input_embedding_scale", 1.0)
    return {
        **format.uncomputed(values),
        "scaled or capped logits": values.get("logit_scale", 1.0) != 1.0 or bool(values.get("final_logit_softcapping")),
        f"logits multiplied by {multiplier}": not multiplier > 0,
        f"embeddings multiplied by {embeddings}": embeddings != 1.0,
        f"candidates among {rows} of the target's tokens": rows not in (None, values["vocab_size"]),
    }


def llamacpp_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]:
    traps, best = format.llamacpp_traps(config, target_type), config.dflash_config["selector_top_k"]
    if best * (best + 1) > config.hidden_size:
        traps.append(
            f"llama.cpp takes selector_top_k = K where K(K+1) fits into a width of {config.hidden_size}, and this draft has {best}"
        )
    return traps
