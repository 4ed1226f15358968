"""Norm, rotary embedding and MLP, exactly as Qwen3 and Llama compute them: the layers of drafts are theirs."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, then times the weight: this order is what serving engines round like."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * nn.functional.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class TokenTable:
    """Marks a module whose own parameters have a row for every token. They are optimised like an embedding: a step that makes a whole
    matrix orthogonal would move the rows of tokens that it has not seen as far as those that it has.
    """


class TokenEmbedding(TokenTable, nn.Embedding):
    """Token -> a small state."""


class TokenReadout(TokenTable, nn.Linear):
    """A small state -> what it adds to every token's logit."""


class RotaryEmbedding(nn.Module):
    """cos and sin of absolute positions; any `rope_parameters` that Transformers knows."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        with torch.device("cpu"):  # its frequencies are computed, not loaded: a model made on "meta" has them too
            self.table = Qwen3RotaryEmbedding(config)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [R] -> cos, sin [R, 1, d], broadcast over heads."""
        cos, sin = self.table(torch.empty(0, dtype=dtype, device=positions.device), positions[None])
        return cos[0, :, None], sin[0, :, None]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x [R, heads, d], half-split ("neox") layout."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
