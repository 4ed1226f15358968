"""A slot proposes one of its K candidates: their logits and what the selector adds, given the token before; no other has a chance."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchspec.methods.dflash2.model import CandidateSelector
from torchspec.methods.walk import Walk
from torchspec.nn.logits import LogitLaw


class SelectorWalk(Walk):
    def __init__(self, states: Tensor, project: Callable[[Tensor], Tensor], selector: CandidateSelector, count: int, law: LogitLaw):
        """count: K; law: of the draft's own logits."""
        super().__init__(states, project)
        self.selector, self.count, self.law = selector, count, law
        self.projected = selector.hidden_projection(states)  # [n, S, R]

    def logits(self, before: Tensor) -> Tensor:
        projected, logits = self.projected[:, self.slot], super().logits(before)
        largest, candidates = logits.topk(self.count)
        scores = self.law.apply_(largest.float()) + self.selector(projected, before, candidates)
        return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter_(1, candidates, scores)

    def keep(self, blocks: Tensor) -> None:
        super().keep(blocks)
        self.projected = self.projected[blocks]
