"""DSpark's slots, one after another: each reads the token before it, the recurrent head also what it remembers of the block."""

from collections.abc import Callable

from torch import Tensor

from torchspec.methods.block.correction import CorrectedWalk
from torchspec.methods.dspark.model import DSparkDraft


class MarkovWalk(CorrectedWalk):
    def __init__(self, states: Tensor, project: Callable[[Tensor], Tensor], draft: DSparkDraft):
        super().__init__(states, project, draft.markov_head.markov_w2)
        self.draft, self.head = draft, draft.markov_head
        self.memory = states.new_zeros(len(states), self.head.rank)

    def factor(self, before: Tensor) -> Tensor:
        factor, self.memory = self.head.step(self.head.markov_w1(before), self.states[:, self.slot], self.memory)
        return factor

    def confidence(self, before: Tensor) -> Tensor:
        return self.draft.confidence_head(self.states[:, self.slot], self.head.markov_w1(before))

    def keep(self, blocks: Tensor) -> None:
        super().keep(blocks)
        self.memory = self.memory[blocks]
