"""LiLiCorr's keys in the draft's config.json, all in `dflash_config`, where vLLM and SGLang read them; neither has a default for one."""

from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.errors import UserError
from torchspec.methods.block import format
from torchspec.methods.format import check_keys
from torchspec.methods.lilicorr.config import WIDTH, LiLiCorrConfig
from torchspec.target.frozen import HEAD

VECTOR_EPS = 1e-4  # as published: no vector shorter than this is scaled up to length 1
KEYS = tuple(
    f"lilicorr_{name}"
    for name in ("candidate_topk", "hidden_size", "num_layers", "num_heads", "mlp_ratio", "factor_dim", "vector_eps", "logit_scale")
)
LARGEST_TOPK = 16  # more candidates, or a number that is no power of two, are refused by both servers


def add_settings(config: Qwen3Config, options: LiLiCorrConfig) -> None:
    width = options.lilicorr_hidden_size or min(WIDTH, config.hidden_size)
    config.dflash_config |= {
        "lilicorr_candidate_topk": options.lilicorr_candidate_topk,
        "lilicorr_hidden_size": width,
        "lilicorr_num_layers": options.lilicorr_num_layers,
        "lilicorr_num_heads": options.lilicorr_num_heads,
        "lilicorr_mlp_ratio": options.lilicorr_mlp_ratio,
        "lilicorr_factor_dim": options.lilicorr_factor_dim or width,
        "lilicorr_vector_eps": VECTOR_EPS,
        "lilicorr_logit_scale": options.lilicorr_logit_scale,
    }
    check_settings(config)


def check_settings(config: PreTrainedConfig) -> None:
    settings = config.dflash_config
    check_keys(settings, KEYS)
    count, heads, width = (settings[f"lilicorr_{name}"] for name in ("candidate_topk", "num_heads", "hidden_size"))
    width = width or config.hidden_size  # 0: the draft's
    if width % heads:
        raise UserError(f"lilicorr_num_heads={heads} does not divide lilicorr_hidden_size={width}; give a divisor")
    if not 1 <= count <= LARGEST_TOPK or count & (count - 1):
        raise UserError(f"lilicorr_candidate_topk={count}: servers take powers of two up to {LARGEST_TOPK}; give one of them")


def uncomputed(values: dict) -> dict[str, bool]:
    nested, size = values["dflash_config"], values.get("draft_vocab_size")
    return {
        **format.uncomputed(values, "lilicorr"),
        "no lattice (lilicorr_enabled)": not nested.get("lilicorr_enabled", True),
        "convolutions in its layers (conv_kernel_size)": bool(nested.get("conv_kernel_size") or nested.get("conv_group_size")),
        "candidates of a reduced vocabulary": size not in (None, values["vocab_size"]),
    }


def fitted(tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Servers take a draft's own head only where the config.json says so. A block shorter than the trained one is its first slots, and the
    distances that occur between them.
    """
    if not config.to_dict().get("has_own_lm_head", False):
        tensors = {name: value for name, value in tensors.items() if name != HEAD}
    slots, bias = (tensors.get(f"lilicorr.{name}") for name in ("slot_embedding", "relative_slot_bias"))
    if slots is None or bias is None or slots.shape[2] < config.block_size:
        return tensors
    cut = slots.shape[2] + 1 - config.block_size
    return tensors | {
        "lilicorr.slot_embedding": slots[:, :, : config.block_size - 1].contiguous(),
        "lilicorr.relative_slot_bias": bias[:, cut : bias.shape[1] - cut].contiguous(),
    }


def llamacpp_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
    return ["llama.cpp up to 0c1e57098 has no LiLiCorr"]
