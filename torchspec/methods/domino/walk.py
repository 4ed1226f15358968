"""Domino's proposals, slot after slot: the GRU reads each token as it is proposed."""

from torch import Tensor, nn

from torchspec.methods.block.correction import CorrectedWalk
from torchspec.methods.domino.model import DominoDraft
from torchspec.methods.vocabulary import DraftVocabulary


class DominoWalk(CorrectedWalk):
    def __init__(self, draft: DominoDraft, states: Tensor, vocabulary: DraftVocabulary, embedding: Tensor, pure: int):
        """pure: slots at the beginning that nothing is added to."""
        super().__init__(states, vocabulary.project, draft.embed_proj[2])
        self.draft, self.embedding, self.pure = draft, embedding, pure
        self.prefix = draft.prefix_gru.start(states)

    def factor(self, before: Tensor) -> Tensor:
        self.prefix = self.draft.prefix_gru(nn.functional.embedding(before, self.embedding), self.prefix)
        factor = self.draft.factor(self.states[:, self.slot], self.prefix)
        return factor if self.slot >= self.pure else factor.zero_()

    def keep(self, blocks: Tensor) -> None:
        super().keep(blocks)
        self.prefix = self.prefix[blocks]
