"""The two heads of DSpark (arXiv 2607.05147): what the token before adds to a slot's logits, and how likely a slot's draft is accepted.

    vanilla   factor = e                                       e = w1[token before]
    gated     factor = sigmoid(G [h ; e]) * e                  h = the row's state after the last norm
    rnn       factor = tanh(o),   [g, c, o] = J [s ; e ; h],   s <- sigmoid(g) s + (1 - sigmoid(g)) tanh(c),   s = 0 at a block's start
    logits += factor @ w2.T
    confidence = w [h ; e] + b, a logit                        e only where the config.json says so

Names and orders are those of vLLM, SGLang, llama.cpp and speculators. What a slot proposes does not enter its own confidence.
"""

import torch
from torch import Tensor, nn

from torchspec.nn.layers import TokenEmbedding, TokenReadout


class MarkovHead(nn.Module):
    def __init__(self, vocab_size: int, rows: int, rank: int, width: int):
        """rows: tokens that the draft can propose; width: of the states."""
        super().__init__()
        self.rank = rank
        self.markov_w1 = TokenEmbedding(vocab_size, rank)
        self.markov_w2 = TokenReadout(rank, rows, bias=False)

    def step(self, embedded: Tensor, states: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One slot of n blocks, embedded [n, r], states [n, H] -> its factor [n, r] and what the next slot remembers [n, r]."""
        return embedded, memory

    def factors(self, embedded: Tensor, states: Tensor) -> Tensor:
        """All slots of n blocks, embedded [n, S, r], states [n, S, H] -> [n, S, r]. Without a memory they are independent."""
        return self.step(embedded, states, embedded)[0]


class GatedHead(MarkovHead):
    def __init__(self, vocab_size: int, rows: int, rank: int, width: int):
        super().__init__(vocab_size, rows, rank, width)
        self.gate_proj = nn.Linear(width + rank, rank)

    def step(self, embedded: Tensor, states: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate_proj(torch.cat((states, embedded), -1)).sigmoid() * embedded, memory


class RecurrentHead(MarkovHead):
    def __init__(self, vocab_size: int, rows: int, rank: int, width: int):
        super().__init__(vocab_size, rows, rank, width)
        self.joint_proj = nn.Linear(2 * rank + width, 3 * rank)

    def step(self, embedded: Tensor, states: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate, out = self.joint_proj(torch.cat((memory, embedded, states), -1)).chunk(3, -1)
        gate = gate.sigmoid()
        return out.tanh(), gate * memory + (1 - gate) * candidate.tanh()

    def factors(self, embedded: Tensor, states: Tensor) -> Tensor:
        memory, parts = torch.zeros_like(embedded[:, 0]), []
        for slot in range(embedded.shape[1]):
            factor, memory = self.step(embedded[:, slot], states[:, slot], memory)
            parts.append(factor)
        return torch.stack(parts, 1)


HEADS = {"vanilla": MarkovHead, "gated": GatedHead, "rnn": RecurrentHead}


class ConfidenceHead(nn.Module):
    def __init__(self, width: int, rank: int):
        """rank: of the token before, 0 where it is not read."""
        super().__init__()
        self.rank, self.proj = rank, nn.Linear(width + rank, 1)

    def forward(self, states: Tensor, embedded: Tensor) -> Tensor:
        """[..., H], [..., r] -> float32 logits [...]. In float32 throughout, as servers compute it: one number per slot."""
        features = torch.cat((states, embedded), -1) if self.rank else states
        return nn.functional.linear(features.float(), self.proj.weight.float(), self.proj.bias.float())[..., 0]
