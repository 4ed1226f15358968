"""XPress' head: what every slot adds to its logits, for the whole block at once, given a token before each row (docs/xpress.md).

      [down_h h ; down_g mean(h) ; w1[token before]] --in_proj--> x --mix--> x + sum over rows up to itself --mlp--> w2 --> logits

Parameter names are the serving format's. H width, r rank, B rows of a block.
"""

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from torchspec.methods.block.model import BlockDraft
from torchspec.nn.layers import MLP, TokenEmbedding, TokenReadout


class CausalMix(nn.Module):
    """x_k + sum_{j <= k} L_kj x_j, channel by channel: a row that has settled is disturbed by none behind it."""

    def __init__(self, rank: int, rows: int):
        super().__init__()
        self.L = nn.Parameter(torch.empty(rank, rows, rows))

    def forward(self, x: Tensor) -> Tensor:
        """[n, B, r] -> [n, B, r]."""
        return x + torch.einsum("rkj,njr->nkr", self.L.tril(), x)


class XPressHead(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        width, rank, inner = config.hidden_size, config.dflash_config["xpress_rank"], config.dflash_config["xpress_mlp_hidden"]
        self.w1 = TokenEmbedding(config.vocab_size, rank)
        self.down_h = nn.Linear(width, rank, bias=False)
        self.down_g = nn.Linear(width, rank, bias=False)
        self.in_proj = nn.Linear(3 * rank, rank, bias=False)
        self.mix = CausalMix(rank, config.block_size)
        self.mlp = MLP(rank, inner)
        self.w2 = TokenReadout(rank, config.vocab_size, bias=False)

    def hidden(self, rows: Tensor) -> Tensor:
        """All rows of blocks [n, B, H] -> [n, B, 2r], the same in every pass."""
        mean = self.down_g(rows.mean(1, keepdim=True))
        return torch.cat((self.down_h(rows), mean.expand(-1, rows.shape[1], -1)), dim=-1)

    def factors(self, hidden: Tensor, anchors: Tensor, before: Tensor) -> Tensor:
        """anchors [n], before [n, B-1] the tokens before the slots -> [n, B-1, r], which w2 turns into logits.

        The anchor's row proposes nothing but is mixed into the others; the anchor stands in for the token before it too, as in vLLM,
        which does not have that token at hand.
        """
        previous = torch.cat((anchors[:, None], before), dim=1)
        x = self.mix(self.in_proj(torch.cat((hidden, self.w1(previous)), dim=-1)))
        return (x + self.mlp(x))[:, 1:]


class XPressDraft(BlockDraft):
    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        self.xpress_head = XPressHead(config)

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        """The backbone's, no mixing, and a readout of zero: a fresh head changes nothing."""
        super().initialise(generator, norm_scale)
        nn.init.zeros_(self.xpress_head.mix.L)
        nn.init.zeros_(self.xpress_head.w2.weight)
