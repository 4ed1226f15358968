"""The frozen parts of the target that the draft shares: embedding, LM head, final norm. Read without loading the model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from torchspec.files.finite import check_finite
from torchspec.nn.logits import AS_THEY_COME, LogitLaw
from torchspec.target.measure import measure
from torchspec.target.model import load_without_layers

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"  # as drafts that bring their own name them


@dataclass(frozen=True)
class FrozenTarget:
    """V tokens, E embedding width (also the width of the head's input), N decoder layers of width H_t."""

    folder: Path
    config: PreTrainedConfig  # the text model's
    embedding: Tensor  # [V, E] rows as stored
    head: Tensor  # [V, E]; the same storage as the embedding when tied
    norm: nn.Module  # the target's own final norm, [..., H_t] -> [..., E]
    law: LogitLaw = AS_THEY_COME  # of the logits, from the head's product on
    embedding_scale: float | None = 1.0  # what the target multiplies a row by; none where it does more. Drafts read rows as stored

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu", trust_remote_code: bool = False) -> "FrozenTarget":
        model = load_without_layers(folder, dtype, trust_remote_code)
        found = measure(model, folder)
        names = {weight: name for name, weight in model.named_parameters()}
        table, matrix = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        parts = {weight: weight.detach().to(device) for weight in (table, matrix, *found.norm.parameters())}  # tied: one of both
        what = {names[weight]: value for weight, value in parts.items()}
        check_finite(what, f"target {folder}", f"in {dtype} the target's weights must be numbers, so fetch it again")
        embedding, head = parts[table], parts[matrix]
        return cls(folder, model.config.get_text_config(), embedding, head, found.norm.to(device), found.law, found.embedding_scale)

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    def logits(self, last_state: Tensor) -> Tensor:
        """The model's own, from the output of the last decoder layer: [L, H_t] -> [L, V]."""
        return self.law.apply_(self.normed(last_state) @ self.head.T)

    def normed(self, last_state: Tensor) -> Tensor:
        """The final norm of the last decoder layer's output, [L, H_t] -> [L, E]."""
        return self.norm(last_state).to(self.head.dtype)  # a norm that computes in float32 may answer in it
