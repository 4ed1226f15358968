"""DFlash2's draft: the backbone with convolutions inside of its blocks, and a selector among the best tokens of each slot.

      x --conv--> attention or MLP --conv--> + residual       both of one kernel: a base, and a part that the slot's own x decides
      score of candidate c after token p = logit[c] + <A[p] * W h, S[c]>

Parameter names are the serving format's tensor names. B rows of a block, T taps, G groups of channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad
from transformers import Qwen3Config

from torchspec.methods.block.model import Attend, BlockDraft, BlockLayer, Rope
from torchspec.nn.chosen import chosen_products
from torchspec.nn.layers import TokenTable


def convolve(x: Tensor, own: Tensor, base: Tensor, block_size: int) -> Tensor:
    """y[k, c] = sum over taps t <= k of (base[t, c] + own[k, t, group of c]) x[k - t, c], for the rows k of each block by themselves.

    x [n * B, H], own [n * B, T, G], base [T, H].
    """
    rows = x.view(-1, block_size, own.shape[2], x.shape[1] // own.shape[2])  # [n, B, G, H / G]
    own, base, out = own.view(-1, block_size, *own.shape[1:], 1), base.unflatten(1, rows.shape[2:]), 0
    for tap in range(min(len(base), block_size)):
        before = pad(rows[:, : block_size - tap], (0, 0, 0, 0, tap, 0))
        out = torch.addcmul(out + base[tap] * before, own[:, :, tap], before)
    return out.view_as(x)


class BlockConvolution(nn.Module):
    """Around a sublayer: one convolution of its input, one of its output."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        width, self.block_size = config.hidden_size, config.block_size
        self.taps, group = config.dflash_config["conv_kernel_size"], config.dflash_config["conv_group_size"]
        self.base_kernel = nn.Parameter(torch.empty(2, self.taps, width))
        self.kernel_projection = nn.Linear(width, 2 * self.taps * (width // group), bias=False)

    def initialise(self) -> None:
        """Both are the identity, as published."""
        nn.init.zeros_(self.base_kernel)[:, 0] = 1.0
        nn.init.zeros_(self.kernel_projection.weight)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        own = self.kernel_projection(x).unflatten(1, (2, self.taps, -1))
        y = sublayer(convolve(x, own[:, 0], self.base_kernel[0], self.block_size))
        return convolve(y, own[:, 1], self.base_kernel[1], self.block_size)


class DFlash2Layer(BlockLayer):
    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.attention_conv, self.mlp_conv = BlockConvolution(config), BlockConvolution(config)

    def forward(self, e: Tensor, c: Tensor, ropes: tuple[Rope, Rope], attend: Attend) -> Tensor:
        """Rows of the context go past the convolutions."""
        e = e + self.attention_conv(self.input_layernorm(e), lambda x: self.self_attn(x, c, ropes, attend))
        return e + self.mlp_conv(self.post_attention_layernorm(e), self.mlp)


class CandidateSelector(TokenTable, nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        rank = config.dflash_config["selector_rank"]
        self.predecessor_codebook = nn.Parameter(torch.empty(config.vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.empty(config.vocab_size, rank))
        self.hidden_projection = nn.Linear(config.hidden_size, rank, bias=False)

    def forward(self, projected: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
        """projected [r, R] states, before [r] tokens, candidates [r, K] tokens -> float32 [r, K], what is added to their logits."""
        return chosen_products(embedding(before, self.predecessor_codebook) * projected, self.successor_codebook, candidates)


class DFlash2Draft(BlockDraft):
    Layer = DFlash2Layer

    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        self.candidate_selector = CandidateSelector(config)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        """As published: convolutions pass everything on, tables are Normal(0, 0.02), which adds almost nothing."""
        super().initialise(generator, norm_scale)
        for layer in self.layers:
            layer.attention_conv.initialise()
            layer.mlp_conv.initialise()
