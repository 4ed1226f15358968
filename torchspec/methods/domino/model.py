"""Domino's head: a GRU reads the block's tokens, and its state beside a slot's own says what is added to the logits (docs/domino.md).

      token      anchor    x_1      x_2
      GRU          g_0 ---> g_1 ---> g_2 --->
      slot                  2        3           correction of slot k: W_2 SiLU(W_1 [z_k ; g_{k-1}]); here the first slot has none

Parameter names are the serving format's. H width, G state of the GRU, E rank.
"""

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from torchspec.methods.block.model import BlockDraft
from torchspec.nn.layers import TokenReadout


class PrefixGRU(nn.Module):
    """The cell of nn.GRU without biases (gates r, z, n), one token at a time.

    Not nn.GRU itself: that keeps its weights in a list of its own, which a call with other parameters (mixed precision) does not reach.
    """

    def __init__(self, width: int, state: int):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * state, width))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * state, state))

    def start(self, rows: Tensor) -> Tensor:
        """[n, ...] -> [n, G] zeros, before any token."""
        return rows.new_zeros(len(rows), self.weight_hh_l0.shape[1])

    def forward(self, embedded: Tensor, state: Tensor) -> Tensor:
        """The next token [n, H], the state before it [n, G] -> the state behind it [n, G]."""
        return torch.gru_cell(embedded, state, self.weight_ih_l0, self.weight_hh_l0)


class DominoDraft(BlockDraft):
    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        width, state, rank = config.hidden_size, config.dflash_config["gru_hidden_dim"], config.dflash_config["emb_dim"]
        self.prefix_gru = PrefixGRU(width, state)
        self.embed_proj = nn.Sequential(
            nn.Linear(width + state, rank, bias=False), nn.SiLU(), TokenReadout(rank, config.vocab_size, bias=False)
        )

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        """The backbone's, the GRU as PyTorch starts it, and a readout of zero: a fresh head changes nothing."""
        super().initialise(generator, norm_scale)
        for weight in self.prefix_gru.parameters():
            bound = self.config.dflash_config["gru_hidden_dim"] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.embed_proj[2].weight)

    def factor(self, states: Tensor, prefix: Tensor) -> Tensor:
        """A slot's own states [..., H], the GRU's behind the token before it [..., G] -> [..., E], which the readout turns into logits."""
        project, activation, _ = self.embed_proj
        return activation(project(torch.cat((states, prefix), dim=-1)))

    def prefixes(self, embedded: Tensor) -> Tensor:
        """Tokens of blocks [n, S, H] -> the GRU's state behind each [n, S, G]."""
        state, states = self.prefix_gru.start(embedded), []
        for token in embedded.unbind(1):
            state = self.prefix_gru(token, state)
            states.append(state)
        return torch.stack(states, dim=1)
