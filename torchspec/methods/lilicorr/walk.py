"""The walk through a lattice whose scores are known: what a slot proposes depends on the candidate chosen at the slot before."""

import torch
from torch import Tensor

from torchspec.methods.walk import Walk


class LatticeWalk(Walk):
    def __init__(self, tokens: Tensor, scores: Tensor, size: int):
        """tokens [n, S, K] rows of the head, scores [n, S, K, K] of each candidate (last) after each of the slot before; size: V_d."""
        self.states, self.scores, self.size, self.slot = tokens, scores, size, 0

    def logits(self, before: Tensor) -> Tensor:
        """-inf of all tokens but the candidates. After a token that is no candidate of its slot, where a walk has ended, those after the
        first one: of no meaning, but finite.
        """
        tokens, scores = self.states[:, self.slot], self.scores[:, self.slot]
        chosen = (self.states[:, max(0, self.slot - 1)] == before[:, None]).int().argmax(-1)
        self.slot += 1
        row = scores.take_along_dim(chosen[:, None, None], dim=1)[:, 0]
        return row.new_full((len(row), self.size), -torch.inf).scatter_(1, tokens, row)

    def keep(self, blocks: Tensor) -> None:
        self.states, self.scores = self.states[blocks], self.scores[blocks]
