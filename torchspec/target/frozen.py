"""The frozen parts of the target that the draft shares: embedding, LM head, final norm. Read without loading the model."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from torchspec.errors import UserError
from torchspec.files.finite import check_finite

NEEDED = (  # of a text model's config; targets with LayerNorm have no rms_norm_eps
    "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
EMBEDDING, HEAD, NORM = "embed_tokens.weight", "lm_head.weight", "norm.weight"


@dataclass(frozen=True)
class FrozenTarget:
    """V tokens, E embedding width (also the width of the head's input), N decoder layers of width H_t."""

    folder: Path
    config: PreTrainedConfig  # the text model's
    embedding: Tensor  # [V, E]
    head: Tensor  # [V, E]; the same storage as the embedding when tied
    norm: Tensor  # [H_t] weight of the final RMSNorm

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu", trust_remote_code: bool = False) -> "FrozenTarget":
        config = load_config(folder, trust_remote_code)
        missing = [name for name in NEEDED if not hasattr(config, name)]
        if missing:
            raise UserError(
                f"target {folder}: the config of {config.model_type} has no {', '.join(missing)}; this architecture is not supported"
            )
        files = tensor_files(folder)
        read = {suffix: _read(folder, files, suffix, dtype, device) for suffix in (EMBEDDING, NORM)}
        head = read[EMBEDDING] if config.tie_word_embeddings else _read(folder, files, HEAD, dtype, device)
        return cls(folder, config, read[EMBEDDING], head, read[NORM])

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    def logits(self, last_state: Tensor) -> Tensor:
        """Final norm and head over the output of the last decoder layer, [L, H_t] -> [L, V]."""
        return self.normed(last_state) @ self.head.T

    def normed(self, last_state: Tensor) -> Tensor:
        """What the target's head reads: the final norm of the last decoder layer's output, [L, H_t]."""
        normed = torch.nn.functional.rms_norm(last_state.float(), last_state.shape[-1:], eps=self.config.rms_norm_eps)
        return self.norm * normed.to(last_state.dtype)


def load_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"target {folder}: config.json cannot be read ({str(error).splitlines()[0]}); fetch it again") from error


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from its single file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{index} is damaged ({error!r}); fetch it again") from error
    if not single.is_file():
        raise UserError(f"target {folder} holds neither {single.name} nor {index.name}; only safetensors weights are read")
    with _open(single) as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size if file.exists() else "no"
        raise UserError(f"{file} ({size} bytes) is not a readable safetensors file ({error}); fetch it again") from error


def _matches(files: dict[str, Path], suffix: str) -> list[str]:
    """Names that end in the suffix and belong to the text model itself, not to one of its layers or to a vision tower."""
    names = [name for name in files if name == suffix or name.endswith("." + suffix)]
    return [name for name in names if "layers." not in name and "visual" not in name and "vision" not in name]


def _read(folder: Path, files: dict[str, Path], suffix: str, dtype: torch.dtype, device) -> Tensor:
    names = _matches(files, suffix)
    if len(names) != 1:
        raise UserError(
            f"target {folder}: expected one tensor named *{suffix}, found {names or 'none'}; this architecture is not supported"
        )
    with _open(files[names[0]]) as tensors:
        if names[0] not in tensors.keys():  # noqa: SIM118 - a file of tensors is no mapping
            raise UserError(f"{files[names[0]]} lacks {names[0]}, which the index says it holds; fetch it again")
        value = tensors.get_tensor(names[0]).to(device=device, dtype=dtype)
    check_finite({names[0]: value}, files[names[0]], f"in {dtype} the target's weights must be numbers, so fetch it again")
    return value
